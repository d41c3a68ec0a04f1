"""Keys and passwords are pointed out, ordinary text is not."""

from __future__ import annotations

import pytest

from shammah.feedback.secrets import find_secrets

# Put together here, so that no scanner takes this file for a leak.
SECRETS = [
    ("-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow...", "private key"),
    ("-----BEGIN OPENSSH " + "PRIVATE KEY-----", "private key"),
    ("-----BEGIN " + "PRIVATE KEY-----", "private key"),
    ("export AWS_ACCESS_KEY_ID=AKIA" + "IOSFODNN7EXAMPLE", "AWS access key"),
    ("use ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a please", "GitHub token"),
    ("github_pat_" + "11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz0123456789", "GitHub token"),
    ("glpat-" + "x9Yb2kQ7vLr4sTn1wZ3c", "GitLab token"),
    ("xoxb-" + "123456789012-abcdefGHIJKL", "Slack token"),
    ("sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc", "Stripe key"),
    ("OPENAI_API_KEY=sk-" + "proj-abcd1234EFGH5678ijkl9012MNOP", "API key"),
    ("AIza" + "SyA1234567890abcdefghijklmnopqrstuv", "Google API key"),
    ("hf_" + "abcdefghijklmnopqrstuvwxyzABCDEFGH", "Hugging Face token"),
    (
        "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4",
        "web token (JWT)",
    ),
    ("postgres://admin:" + "tr0ub4dor@db.example.org/shop", "password"),
    ("password = 'hello-there'", "password"),
    ('{"password": "Tr0ub4dor&3"}', "password"),
    ("My password is Xk7!pass9", "password"),
    ("DB_PASSWORD=s3cr3t99", "password"),
    ("pwd: 12ab34cd", "password"),
    ('api_key = "9f8e7d6c5b4a3210"', "secret"),
    ("client_secret: a1b2c3d4e5f6", "secret"),
    ("try wJalrXUtnFEMI7K7MDENGbPxRfiCYzK3yQ9p", "long random token"),
]

ORDINARY = [
    "What is a list comprehension?",
    "A password should be long. Never share your password with anyone.",
    "The password is wrong, and the secret is out.",
    "How do I hash a password? Use hashlib.scrypt(password.encode(), salt=salt).",
    "password = input('Password: ')",
    "password = os.environ['DB_PASSWORD']",
    "password = getpass.getpass()",
    'password: str = "..."',
    "password = '<your password>'",
    "PASSWORD=changeme",
    "def login(user, password=None, token=None): ...",
    "token = tokenizer.encode(text)[0]",
    "token: the next word; secret: something hidden",
    "secret = request.headers['X-Secret']",
    "The key is to start small: key = sorted(words, key=len)",
    "https://docs.python.org/3/library/asyncio-eventloop.html#asyncio.loop.run_in_executor",
    "git checkout 9f8e7d6c5b4a32100123456789abcdef01234567",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "123e4567-e89b-12d3-a456-426614174000",
    "/home/user/projects/shammah/adapters/lora_adapter_20260206_143025.safetensors",
    "test_undo_walks_back_through_any_history_2_times_in_a_row_please",
    "class AbstractSingletonProxyFactoryBean2Configuration(object): pass",
    "model.layers.0.self_attn.q_proj.lora_A.default.weight",
    "1234567890123456789012345678901234567890",
    "================================================================",
    "pip install torch==2.13.0 transformers==5.23.0 --extra-index-url https://x.org/whl/cpu",
    "sk-learn is short for scikit-learn, sk-something-else-that-is-long",
    "SELECT password FROM users WHERE token = :token",
    "ssh-keygen -t ed25519 -C 'you@example.org'",
    "curl -H 'Authorization: Bearer $TOKEN' https://api.example.org",
]


@pytest.mark.parametrize(("text", "kind"), SECRETS)
def test_secret_is_named(text: str, kind: str) -> None:
    assert find_secrets(f"Remember this: {text}\nThanks.") == [kind]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert find_secrets(text) == []


def test_every_kind_once() -> None:
    text = "password = 'abcd1234'; password = 'efgh5678' AKIA" + "IOSFODNN7EXAMPLE"
    assert find_secrets(text) == ["AWS access key", "password"]


def test_long_texts_take_no_time() -> None:
    assert find_secrets("a" * 300_000 + " password " * 30_000 + "x1" * 100_000) == []
