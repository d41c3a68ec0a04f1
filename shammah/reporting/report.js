"use strict";
// Says the value under the pointer, or under the arrow keys; without it the report reads as well.
for (const figure of document.querySelectorAll(".chart")) {
  const points = JSON.parse(figure.dataset.points);
  const svg = figure.querySelector("svg");
  const [line, dot] = svg.querySelectorAll(".cursor");
  const now = figure.querySelector(".now");
  const step = figure.querySelector(".step");
  let place = points.length - 1;
  const show = (index, pointed) => {
    place = Math.max(0, Math.min(points.length - 1, index));
    const [x, y, at, value] = points[place];
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    dot.setAttribute("cx", x);
    dot.setAttribute("cy", y);
    now.textContent = value;
    step.textContent = `step ${at.toLocaleString("en")}`;
    figure.classList.toggle("pointed", pointed);
  };
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let low = 0;
    let high = points.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((points[middle][0] + points[middle + 1][0]) / 2 < x) low = middle + 1;
      else high = middle;
    }
    show(low, true);
  };
  const leave = () => show(points.length - 1, false);
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -points.length, End: points.length }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    show(place + move, true);
  });
}
