"""The transport: every way in which a connection or an answer can be wrong, told apart; keys that stay out of sight."""

import asyncio
import gzip
import ssl
import subprocess
import time

import orjson
import pytest

from limbeck.errors import EndpointFailure, LimbeckError, Refused
from limbeck.models import Request, get
from limbeck.models.waits import seconds
from limbeck.models.wire import form
from tests.loopback import loopback
from tests.models.scripted import ask, http, scripted

ASK = Request([{"role": "user", "content": "how many legs has a spider"}])
REPLY = {
    "model": "m",
    "choices": [{"message": {"content": "8"}}],
    "usage": {"prompt_tokens": 6, "completion_tokens": 1},
}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def said(server, **options):
    url = server if isinstance(server, str) else server.url
    (result,) = ask(get("openai/m", base_url=url, **{"timeout": 10, **options}), ASK)
    return result


def failure(steps, **options) -> EndpointFailure:
    with scripted(steps) as server:
        result = said(server, **options)
    assert isinstance(result, EndpointFailure), result
    assert "\n" not in str(result) and f"127.0.0.1:{server.port}" in str(result)
    return result


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    home = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "1",
               "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", home / "key.pem",
               "-out", home / "cert.pem"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "cert.pem", home / "key.pem")
    return home / "cert.pem", context


def test_each_broken_answer_has_a_cause_of_its_own():
    whole = http(REPLY)[0]
    causes = {
        "disconnect": [None],
        "short body": [whole[:-10], None],
        "broken body": http(b'{"choices": [{"mess'),
        "HTML page": http(b"<!doctype html><title>Sign in</title><p>welcome"),
        "empty": http({"choices": []}),
        "error body": http({"error": {"message": "no backend"}}),
        "HTTP 502": http(b"<html><head><title>502 Bad Gateway</title>", status=502, Content_Type="text/html"),
        "HTTP 503": http({"error": {"message": "upstream", "code": 503}}),
        "no HTTP": [b"220 mail.example ESMTP\r\n\r\n"],
    }
    for cause, steps in causes.items():
        found = failure(steps)
        assert found.cause == cause and not found.final, (cause, found)


def test_a_page_is_told_by_its_title():
    assert (
        "HTTP 502: 502 Bad Gateway;"
        in str(failure(http(b"<html><title>502\n Bad Gateway</title><p>", status=502))) + ";"
    )


def test_an_answer_that_goes_silent_is_given_up_but_one_that_drips_is_not():
    whole = http(REPLY)[0]
    begun = whole[: whole.index(b"\r\n\r\n") + 9]
    silent = failure([begun, 5.0], stall=0.1)
    assert silent.cause == "stall" and "0.1 s" in str(silent)
    drips = [step for i in range(0, len(whole), 40) for step in (whole[i : i + 40], 0.03)]
    with scripted(drips) as server:
        assert said(server, stall=0.2).text == "8"
    assert failure(drips, stall=0.2, timeout=0.06).cause == "timeout"  # the whole is bounded all the same


def test_a_compressed_answer_is_read():
    with scripted(http(gzip.compress(orjson.dumps(REPLY)), Content_Encoding="gzip")) as server:
        assert said(server).text == "8"


def test_a_certificate_that_nobody_vouches_for_is_final(certificate, monkeypatch):
    path, context = certificate
    with scripted(http(REPLY), tls=context) as server:
        found = said(server)
        assert found.cause == "certificate" and found.final and "SSL_CERT_FILE" in str(found)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        assert said(server).text == "8"


def test_encryption_where_the_server_has_none():
    with loopback() as server:
        found = said(server.url.replace("http:", "https:"))
    assert found.cause == "TLS" and "http://" in str(found)


def test_a_redirect_is_not_followed():
    with scripted(http(status=307, Location="http://elsewhere.example/?token=sk-secret-1")) as server:
        found = said(server, api_key="sk-secret-1")
    assert len(server.seen) == 1 and found.final and found.cause == "HTTP 307"
    assert "elsewhere.example" in str(found) and "sk-secret-1" not in str(found)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
def test_a_key_that_the_server_echoes_is_shown_nowhere(status):
    key = "sk-very-secret-0123456789"
    with scripted(
        lambda s, n: http({"error": {"message": f"bad key {s.headers['authorization']}"}}, status=status)
    ) as server:
        model = get("openai/m", base_url=server.url.replace("://", "://me:pass-word-1@") + f"?sig={key}2", api_key=key)
        (found,) = ask(model, ASK)
    assert server.seen[0].headers["authorization"] == f"Bearer {key}" and f"sig={key}2" in server.seen[0].path
    shown = f"{found} {found!r} {model!r} {model.endpoint} {model.name} {model.digest}"
    assert "(the key)" in shown and key not in shown and "pass-word-1" not in shown


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("{home}?key=sk-one%2Ftwo%2Bthree", ["sk-one%2Ftwo%2Bthree", "sk-one/two+three"]),
        ("{home}?key=sk-one/two", ["sk-one/two", "sk-one%2Ftwo"]),
        ("{home}?sk-one-two", ["sk-one-two"]),
        ("{token}", ["sk-one-two", "c2stb25lLXR3bw=="]),
        ("{user}", ["user-one:p%40ss-word", "user-one:p@ss-word", "p%40ss-word", "dXNlci1vbmU6cEBzcy13b3Jk"]),
    ],
)
def test_what_the_address_holds_is_masked_in_every_form_that_comes_back(where, told):
    with scripted(http({"error": {"message": f"denied: {'; '.join(told)}"}}, status=500)) as server:
        home, token, user = (
            server.url.replace("://", f"://{who}") for who in ("", "sk-one-two@", "user-one:p%40ss-word@")
        )
        found = said(where.format(home=home, token=token, user=user))
    assert not any(secret in str(found) for secret in told)
    assert f"denied: {'; '.join(['(the key)'] * len(told))}" in str(found)


def test_a_user_and_password_in_the_address_become_a_header():
    with scripted(http(REPLY)) as server:
        assert said(server.url.replace("://", "://me:p%40ss@")).text == "8"
    assert server.seen[0].headers["authorization"] == "Basic bWU6cEBzcw=="


def test_a_key_of_a_word_does_not_blot_out_words():
    assert "unexpected" in str(failure(http({"error": {"message": "unexpected"}}, status=500), api_key="x"))


def test_a_bad_address_is_said_without_its_password():
    with pytest.raises(LimbeckError) as caught:
        get("openai/m", base_url="ftp://me:pass-word-1@host/")
    assert "pass-word-1" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://a:port/v1", "http://a b/v1", "http:///v1", "a.example/v1"])
def test_addresses_that_are_none(url):
    with pytest.raises(LimbeckError, match="base_url"):
        get("openai/m", base_url=url)


@pytest.mark.parametrize("key", ["sk-one\nsk-two-secret", "sk-clé-secret", "sk-“quoted-secret”"])
def test_a_key_that_no_header_can_hold_is_said_without_it(key):
    with scripted(http(REPLY)) as server:
        found = said(server, api_key=key)
    assert found.final and found.cause == "header" and "Authorization" in str(found)
    assert not server.seen and "secret" not in str(found)


def test_room_is_what_the_headers_say_after_answers_and_failures():
    headers = {"x_ratelimit_remaining_requests": "9", "x_ratelimit_reset_requests": "120ms",
               "x_ratelimit_remaining_tokens": "7000", "x_ratelimit_reset_tokens": "6m0s"}  # fmt: skip
    for status in (200, 429):
        with scripted(http(REPLY, status=status, **headers)) as server:
            model = get("openai/m", base_url=server.url)
            ask(model, ASK)
        assert (model.room.requests, model.room.requests_reset) == (9, pytest.approx(0.12))
        assert (model.room.tokens, model.room.tokens_reset) == (7000, 360.0)
    with scripted(http(REPLY)) as server:
        model = get("openai/m", base_url=server.url)
        ask(model, ASK)
    assert model.room is None


def test_waits_in_every_form():
    now = time.time()
    assert [seconds(t) for t in ("7", "1m2.5s", "1d", "0", "-3")] == [7.0, 62.5, 86400, 0.0, 0.0]
    assert [seconds(t) for t in (None, "", "soon", "nan", "inf", "9s!")] == [None] * 6
    forms = ("%Y-%m-%dT%H:%M:%SZ", "%a, %d %b %Y %H:%M:%S GMT")
    dates = [time.strftime(form, time.gmtime(now + 60)) for form in forms]
    for ahead in (str(int(now + 60)), str(int((now + 60) * 1000)), *dates):
        assert 50 < seconds(ahead) <= 60, ahead


def test_any_other_call_goes_the_same_way():
    def answer(seen, n):
        return http({"is": seen.path}) if seen.path != "/v1/gone" else http({"error": {"message": "no"}}, status=410)

    async def go(model):
        body, kind = form({"purpose": "batch"}, "file", "rows.jsonl", b"{}\n")
        try:
            first = await model.call("GET", "/batches/7")
            await model.call("POST", "/batches", json={"a": 1}, headers={"X-Beta": "b"})
            await model.call("POST", "/files", data=body, headers=kind)
            await model.call("GET", f"{model.endpoint}/files/1/content")
            with pytest.raises(EndpointFailure, match="HTTP 410"):
                await model.call("GET", "/gone")
            with pytest.raises(LimbeckError, match="not sent the key"):
                await model.call("GET", "http://elsewhere.example/results")
            return first
        finally:
            await model.close()

    with scripted(answer) as server:
        status, headers, body = asyncio.run(go(get("openai/m", base_url=f"{server.url}/v1", api_key="sk-1")))
    assert (status, headers["content-type"], body) == (200, "application/json", b'{"is": "/v1/batches/7"}')
    _, post, upload, content, _ = server.seen
    assert post.json == {"a": 1} and post.headers["x-beta"] == "b"
    assert upload.headers["content-type"].startswith("multipart/form-data; boundary=") and b"rows.jsonl" in upload.body
    assert content.path == "/v1/files/1/content" and {s.headers["authorization"] for s in server.seen} == {
        "Bearer sk-1"
    }


def test_connections_are_used_again_and_a_failed_one_is_not():
    async def go(model):
        texts = [(await model.reply(ASK, "00")).text for _ in range(3)]
        with pytest.raises(EndpointFailure, match="broke off"):
            await model.reply(ASK, "00")
        together = await asyncio.gather(*(model.reply(ASK, "00") for _ in range(8)))
        await model.close()
        return [*texts, *(r.text for r in together)]

    with scripted(lambda seen, n: [http(REPLY)[0][:-3], None] if n == 3 else http(REPLY)) as server:
        assert asyncio.run(go(get("openai/m", base_url=server.url))) == ["8"] * 11
    assert (len(server.seen), server.connections) == (12, 9)


def test_a_request_that_was_given_up_leaves_nothing_for_the_next_one():
    async def go(model):
        late = asyncio.ensure_future(model.reply(ASK, "00"))
        await asyncio.sleep(0.05)
        late.cancel()
        try:
            return await model.reply(ASK, "00")
        finally:
            await model.close()

    late = http({**REPLY, "choices": [{"message": {"content": "late"}}]})
    with scripted(lambda seen, n: http(REPLY) if n else [0.1, *late]) as server:
        assert asyncio.run(go(get("openai/m", base_url=server.url))).text == "8"


def test_answers_in_chunks_after_a_hundred_or_up_to_the_end_are_read():
    body = orjson.dumps(REPLY)
    chunks = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (9, body[:9], len(body) - 9, body[9:])
    for steps in (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks[:7], 0.01, chunks[7:]],
        [b"HTTP/1.1 100 Continue\r\n\r\n", *http(REPLY)],
        [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", body],
    ):
        with scripted([*steps, -1.0]) as server:
            assert said(server).text == "8"
    cut = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks[:-5], None]
    assert failure(cut).cause == "short body"


def test_a_refusal_is_told_from_a_failure_by_its_status():
    for status, kind in ((400, Refused), (413, Refused), (422, Refused), (500, EndpointFailure)):
        with scripted(http({"detail": "too long"}, status=status)) as server:
            assert type(said(server)) is kind
