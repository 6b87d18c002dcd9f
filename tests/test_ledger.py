"""Paid calls: nothing acknowledged is lost, nothing is paid for twice, no cap is passed, every failure is counted.

The real openai client and instructor talk to `fake_llm`, a server on 127.0.0.1 that fails on cue.
"""
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from pathlib import Path

import pytest
from children import child
from fake_llm import MUCH, FakeLLM, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator

from rag_finetune.core import DataError
from rag_finetune.synthetic import Call, Cap, Failed, Ledger, Pace, Price, Reply, ask, paid, sender, served

ROOT = Path(__file__).resolve().parent.parent

class Word(BaseModel):
    word: str

    @field_validator("word")
    @classmethod
    def is_loud(cls, word):
        if word != word.upper(): raise ValueError("in capitals")
        return word

def call(prompt, schema=Word, **parameters):
    return Call("tiny", [{"role": "user", "content": prompt}], schema, {"max_tokens": 50} | parameters)

def calls(n): return {f"row {i}": call(f"say {i}") for i in range(n)}

def loud(prompt, schema): return {"word": prompt.upper()}

def asked(ledger, wanted, server, **options):
    "Ask through the real clients, without long waits."
    send = sender("tiny", server.url, options.pop("timeout", 10.), "none")
    return ask(ledger, wanted, send, **{"backoff": .01} | options)

@pytest.fixture
def ledger(tmp_path): return Ledger(tmp_path / "ledger.sqlite")

# the key

def test_an_answered_call_is_never_sent_again(ledger):
    with FakeLLM(loud) as server:
        first = asked(ledger, calls(5), server)
        again = asked(Ledger(ledger.path), calls(5), server)
        assert first == again and first.answers["row 3"] == Word(word="SAY 3")
        assert server.asked == Counter({f"say {i}": 1 for i in range(5)})
    assert ledger.spent() == {"tokens": 5 * tokens("say 0")[2], "money": 0, "answers": 5, "failed": 0, "open": 0}

class Loud(BaseModel):
    word: str

@pytest.mark.parametrize("other", [
    call("say 1"), call("say 0", temperature=.5), call("say 0", max_tokens=51), call("say 0", schema=Loud),
    call("say 0")._replace(model="small"), call("say 0")._replace(messages=[{"role": "system", "content": "say 0"}])])
def test_whatever_decides_the_answer_is_part_of_the_key(other): assert other.key != call("say 0").key

def test_the_key_does_not_depend_on_the_order_or_the_process():
    one = call("é ☂", a=1, b=2)
    assert one.key == call("é ☂", b=2, a=1).key
    code = ("import sys; sys.path.insert(0, 'tests'); from test_ledger import call; print(call('é ☂', b=2, a=1).key)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == one.key

def test_equal_calls_under_several_ids_are_paid_for_once(ledger):
    with FakeLLM(loud, latency=.1) as server:
        got = asked(ledger, {f"row {i}": call("say it") for i in range(8)}, server, workers=8)
        assert len(got.answers) == 8 and server.asked == {"say it": 1}

def test_what_a_document_holds_is_sent_as_it_is(ledger):
    "instructor renders templates where it is given a context; braces in a document are no template."
    with FakeLLM(lambda prompt, schema: {"word": "OK"}) as server:
        asked(ledger, {"a": call("{{ 7 * 7 }} {% raw %} ☂")}, server)
        assert server.payloads[0]["messages"][-1]["content"] == "{{ 7 * 7 }} {% raw %} ☂"
        assert server.payloads[0]["max_tokens"] == 50

def test_the_same_name_at_another_address_is_another_model(ledger):
    with FakeLLM(loud) as one, FakeLLM(lambda prompt, schema: {"word": "OTHER"}) as other:
        for server in (one, other):
            got = asked(ledger, {"a": call("x")._replace(model=served("tiny", server.url))}, server)
            assert server.asked == {"x": 1}
        assert got.answers["a"].word == "OTHER"

def test_what_opens_a_server_is_not_written_down():
    assert served("tiny", "https://me:secret@host:8000/v1/?key=secret") == "tiny at https://host:8000/v1" != served("tiny", "http://host/v1")
    assert served("openai/gpt", None) == "openai/gpt"

@pytest.mark.parametrize("own", [None, "of-the-address"])
def test_a_key_of_openai_goes_to_no_other_address(own, ledger, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    if own: monkeypatch.setenv("RAG_FINETUNE_API_KEY", own)
    else: monkeypatch.delenv("RAG_FINETUNE_API_KEY", raising=False)
    with FakeLLM(loud) as server:
        assert ask(ledger, {"a": call("x")}, sender("tiny", server.url)).answers
        assert server.headers[0]["authorization"] == f"Bearer {own or 'none'}" and "sk-secret" not in str(server.headers)

def provider(name, server, patch):
    "A sender for a provider of instructor's, whose requests all go through `server` as their proxy."
    for variable in ("HTTP_PROXY", "HTTPS_PROXY"):
        for case in (variable, variable.lower()): patch.setenv(case, f"http://127.0.0.1:{server.server_port}")
    for variable in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"): patch.delenv(variable, raising=False)
    for of in ("OPENAI", "DEEPSEEK", "OPENROUTER", "TOGETHER", "ANYSCALE"): patch.setenv(f"{of}_API_KEY", "sk-x")
    return sender(name, timeout=1.)

@pytest.mark.parametrize("fault", [None, "500", "slow"])
def test_another_provider_is_asked_once_for_each_attempt_too(fault, ledger, monkeypatch):
    with FakeLLM(loud, lambda prompt, nth: fault, slow=2.) as server:
        begun = time.monotonic()
        got = ask(ledger, {"a": call("x")}, provider("ollama/llama3.1", server, monkeypatch), attempts=2, backoff=.01)
        assert server.asked == {"x": 2 if fault else 1} and server.payloads[0]["model"] == "llama3.1" and time.monotonic() - begun < 8
    assert bool(got.answers) == (fault is None) and (not fault or got.failed["a"] in ("500 server_error", "timed out"))

@pytest.mark.parametrize(("name", "host"), [
    ("openai/x", "api.openai.com"), ("deepseek/x", "api.deepseek.com"), ("openrouter/x/y", "openrouter.ai"),
    ("together/x", "api.together.xyz"), ("anyscale/x", "api.endpoints.anyscale.com")])
def test_every_provider_that_speaks_openais_language_tries_once_for_each_attempt(name, host, ledger, monkeypatch):
    with FakeLLM(loud) as server:
        got = ask(ledger, {"a": call("x")}, provider(name, server, monkeypatch), attempts=2, backoff=.01)
        assert server.asked == {f"{host}:443": 2} and got.failed == {"a": "no connection"}
    assert ledger.spent()["tokens"] == 0, "nothing was sent"

def test_openai_itself_gets_the_name_that_all_its_models_take(ledger, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    with FakeLLM(loud) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert ask(ledger, {"a": call("x")}, sender("openai/tiny")).answers
        assert server.payloads[0]["max_completion_tokens"] == 50 and "max_tokens" not in server.payloads[0]

def test_a_client_whose_own_retries_cannot_be_turned_off_is_refused(tmp_path):
    package = "class Mistral:\n    def __init__(self, api_key): self.chat = self\n    def complete(self): ...\n    stream = complete\n"
    (tmp_path / "mistralai.py").write_text(package)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from rag_finetune.synthetic import sender; sender('mistral/x')"
    env = os.environ | {"MISTRAL_API_KEY": "x"}
    last = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env).stderr.splitlines()[-1]
    assert "DataError: model mistral/x: the retries of Mistral cannot be turned off" in last, last

def test_an_argument_that_the_client_does_not_know_stops_all_with_its_words_and_costs_nothing(ledger):
    with FakeLLM(loud) as server, pytest.raises(DataError, match="TypeError.*temprature") as error:
        asked(ledger, {"a": call("x", temprature=0.)} | calls(200), server, workers=1)
    assert "\n" not in str(error.value) and server.asked == {}
    assert ledger.spent() == {"tokens": 0, "money": 0, "answers": 0, "failed": 1, "open": 0}

# faults: (name, what the reason says, sent again?, what a failed attempt counts: nothing, what it took, or all that was reserved)

FAULTS = [("429", "429 rate_limit_exceeded", True, "nothing"), ("500", "500 server_error", True, "nothing"),
          ("503", "503 overloaded", True, "nothing"), ("400", "400 bad_request", False, "nothing"),
          ("408", "408 timeout", True, "all"), ("502", "502 bad_gateway", True, "all"), ("504", "504 gateway_timeout", True, "all"),
          ("refusal", "refused by the model", False, "used"), ("filter", "stopped by a content filter", False, "used"),
          ("cut", "cut off at max_tokens", True, "used"), ("cut json", "wrong schema", True, "used"),
          ("schema", "wrong schema (word: missing)", True, "used"), ("body", "", True, "all"), ("drop", "no connection", True, "all"),
          ("slow", "timed out", True, "all")]

@pytest.mark.parametrize(("fault", "reason", "again", "counts"), FAULTS)
def test_a_fault_is_retried_where_that_helps_and_counted(fault, reason, again, counts, ledger):
    with FakeLLM(loud, lambda prompt, nth: fault if nth == 0 else None) as server:
        got = asked(ledger, {"a": call("say it")}, server, timeout=1.)
        assert server.asked["say it"] == (2 if again else 1), "one layer of retries: the clients' own are off"
    took = {"nothing": 0, "used": tokens("say it")[2], "all": sum(call("say it").most)}[counts]
    if again: assert got.answers == {"a": Word(word="SAY IT")} and got.failed == {}
    else: assert got.answers == {} and reason in got.failed["a"]
    assert ledger.spent() == {"tokens": took + again * tokens("say it")[2], "money": 0, "answers": int(again), "failed": 1, "open": 0}

@pytest.mark.parametrize("fault", ["cut", "cut json", "schema"])
def test_what_a_model_would_say_again_is_not_asked_again_at_temperature_0(fault, ledger):
    with FakeLLM(loud, lambda prompt, nth: fault) as server:
        got = asked(ledger, {"a": call("x", temperature=0.)}, server)
        assert server.asked == {"x": 1} and list(got.failed) == ["a"] and ledger.spent()["tokens"] == tokens("x")[2]
        server.fault = lambda prompt, nth: None
        assert asked(ledger, {"a": call("x", temperature=0.)}, server).answers, "a failure is no answer; a server may have been mended"

@pytest.mark.parametrize(("fault", "reason", "again", "counts"), FAULTS)
def test_a_fault_that_stays_is_a_failed_row_with_its_reason_and_no_answer(fault, reason, again, counts, ledger):
    with FakeLLM(loud, lambda prompt, nth: fault if "bad" in prompt else None, slow=.6) as server:
        got = asked(ledger, {"a": call("bad"), "b": call("good")}, server, timeout=.3, attempts=3)
        assert server.asked == {"bad": 3 if again else 1, "good": 1}
        assert list(got.answers) == ["b"] and list(got.failed) == ["a"] and reason in got.failed["a"]
        assert ledger.answer(call("bad").key) is None
        server.fault = lambda prompt, nth: None
        assert asked(ledger, {"a": call("bad"), "b": call("good")}, server, attempts=3).answers.keys() == {"a", "b"}
        assert server.asked["good"] == 1

@pytest.mark.parametrize("fault", ["401", "404", "quota"])
def test_where_no_call_can_succeed_all_stop_with_one_line_and_answers_are_kept(fault, ledger):
    with FakeLLM(loud, lambda prompt, nth: fault if prompt == "say 9" else None) as server:
        asked(ledger, calls(5), server)
        with pytest.raises(DataError, match="no call can succeed") as error:
            asked(ledger, {"first": call("say 9")} | calls(2000), server, workers=2)
        assert "\n" not in str(error.value) and server.asked["say 9"] == 1
        assert sum(server.asked.values()) < 500, "the rest was not sent"
        assert ledger.spent()["answers"] == sum(server.answered.values()) >= 5

def test_a_wrong_schema_says_what_the_validator_refused(ledger):
    with FakeLLM(lambda prompt, schema: {"word": "quiet"}) as server:
        assert asked(ledger, {"a": call("x")}, server, attempts=2).failed == {"a": "wrong schema (word: value_error)"}

def test_an_answer_without_usage_counts_in_full(ledger):
    with FakeLLM(loud, lambda prompt, nth: "no usage") as server: asked(ledger, {"a": call("x")}, server)
    assert ledger.spent()["tokens"] == sum(call("x").most)

def test_nobody_listens(ledger):
    with FakeLLM(loud) as server: url = server.url
    got = ask(ledger, {"a": call("x")}, sender("tiny", url, 2., "none"), attempts=2, backoff=.01)
    assert got.failed == {"a": "no connection"} and ledger.spent()["tokens"] == 0, "nothing was sent, nothing can have cost"

# waiting

@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured_by_all_threads(as_date, ledger):
    wait = 2.
    with FakeLLM(loud, lambda prompt, nth: "429" if prompt == "say 0" and nth == 0 else None, latency=.05) as server:
        server.retry_after = (lambda: formatdate(time.time() + wait + 1, usegmt=True)) if as_date else lambda: str(wait)
        asked(ledger, calls(60), server, workers=2)
        refused, answered = server.times["say 0"]
        others = sorted(t - refused for i in range(1, 60) for t in server.times[f"say {i}"])
    assert answered - refused >= wait - .1
    assert not [t for t in others if .5 < t < wait - .1], "one refusal holds everybody back"

def test_who_shall_wait_too_long_fails_and_says_so(ledger):
    with FakeLLM(loud, lambda prompt, nth: "429", retry_after=lambda: "86400") as server:
        start = time.monotonic()
        assert asked(ledger, {"a": call("x")}, server).failed == {"a": "429 rate_limit_exceeded"}
        assert server.asked["x"] == 1 and time.monotonic() - start < 30

def test_attempts_lie_further_and_further_apart(ledger):
    with FakeLLM(loud, lambda prompt, nth: "500") as server:
        asked(ledger, {"a": call("x")}, server, attempts=5, backoff=.2)
        times = server.times["x"]
    gaps = [b - a for a, b in zip(times, times[1:])]
    assert len(gaps) == 4 and all(gap >= .1 * 2 ** i for i, gap in enumerate(gaps))

# caps

def test_a_cap_in_tokens_is_never_passed_and_refused_rows_are_named(tmp_path):
    cap = 4 * tokens("say 0")[2] + sum(call("say 0").most)
    ledger = Ledger(tmp_path / "l.sqlite", Cap(tokens=cap))
    with FakeLLM(loud) as server:
        got = asked(ledger, calls(30), server, workers=8)
        assert server.tokens == ledger.spent()["tokens"] <= cap
        assert len(got.answers) == 5, "what others had only reserved is there again for the next"
        assert set(got.failed.values()) == {"the cap in tokens is reached"} and len(got.failed) == 25
        more = asked(Ledger(ledger.path, Cap(tokens=cap + 10_000)), calls(30), server)
        assert len(more.answers) >= 10 and server.asked["say 0"] <= 1

def test_a_cap_in_money(tmp_path):
    price = Price(input=2., output=10.)
    one = tokens("say 0")[0] * 2e-6 + tokens("say 0")[1] * 10e-6
    most = price.of(*call("say 0").most)
    ledger = Ledger(tmp_path / "l.sqlite", Cap(money=2 * one + most), price)
    with FakeLLM(loud) as server: got = asked(ledger, calls(10), server)
    assert len(got.answers) == 3 and ledger.spent()["money"] == pytest.approx(3 * one)
    assert set(got.failed.values()) == {"the cap in money is reached"}

def test_a_cap_in_money_needs_prices(tmp_path):
    with pytest.raises(DataError, match="prices"): Ledger(tmp_path / "l.sqlite", Cap(money=1.))

def test_a_call_without_a_limit_has_no_greatest_price(ledger):
    with pytest.raises(DataError, match="max_tokens"): ask(ledger, {"a": call("x")._replace(parameters={})}, lambda c: 1 / 0)

@settings(max_examples=30, deadline=None)
@given(cap=st.integers(0, 4000), workers=st.integers(1, 6),
       wanted=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 200)), min_size=1, max_size=12))
def test_only_what_a_server_takes_beyond_its_limit_can_pass_the_cap(tmp_path_factory, cap, workers, wanted):
    "`wanted`: max_tokens of each call, and how many tokens more than set aside the server says it took."
    ledger = Ledger(tmp_path_factory.mktemp("cap") / "l.sqlite", Cap(tokens=cap))
    seen, beyond = [], []
    def send(c):
        extra = c.parameters["extra"]
        beyond.append(extra)
        seen.append(ledger.spent()["tokens"] - sum(beyond))
        return Reply(Word(word="A"), (c.most[0] - 300 * (not extra), c.most[1] + extra))
    ask(ledger, {str(i): call("x" * size, max_tokens=size, extra=extra) for i, (size, extra) in enumerate(wanted)}, send, workers)
    assert max([*seen, ledger.spent()["tokens"] - sum(beyond)]) <= cap

def test_more_than_was_set_aside_is_said_once_and_stops_the_rest(tmp_path, caplog):
    ledger = Ledger(tmp_path / "l.sqlite", Cap(tokens=5000))
    with FakeLLM(loud, lambda prompt, nth: "much") as server:
        got = asked(ledger, calls(9), server, workers=3)
        sent = sum(server.asked.values())
    assert 1 <= sent <= 3 and len(got.answers) == sent and ledger.spent()["tokens"] == sent * MUCH
    assert set(got.failed.values()) == {"the cap in tokens is reached"}
    assert [r.levelname for r in caplog.records if "more than was set aside" in r.message] == ["WARNING"]

def test_money_is_what_all_tokens_cost_by_the_prices_of_today(tmp_path):
    path, price = tmp_path / "l.sqlite", Price(1000., 2000.)
    with FakeLLM(loud) as server:
        asked(Ledger(path), calls(3), server)
        cost = 3 * (tokens("say 0")[0] * 1e-3 + tokens("say 0")[1] * 2e-3)
        assert Ledger(path, price=price).spent()["money"] == pytest.approx(cost)
        got = asked(Ledger(path, Cap(money=cost), price), {"a": call("more")}, server)
        assert got.failed == {"a": "the cap in money is reached"} and "more" not in server.asked

@pytest.mark.parametrize(("cap", "price"), [
    (Cap(tokens=-1), None), *((Cap(money=x), Price(1., 1.)) for x in (-1., float("nan"), float("inf"))),
    *((Cap(), Price(*p)) for p in ((-1., 1.), (1., float("nan")), (float("inf"), 1.)))])
def test_a_cap_or_price_that_is_no_amount_is_refused_in_one_line(cap, price, tmp_path):
    with pytest.raises(DataError, match="l.sqlite: .* 0 or more"): Ledger(tmp_path / "l.sqlite", cap, price)
    assert not (tmp_path / "l.sqlite").exists()

# the file

def test_rows_are_added_and_never_changed(ledger):
    with FakeLLM(loud) as server: asked(ledger, calls(2), server)
    db = sqlite3.connect(ledger.path)
    for table in ("reserved", "settled", "answers"):
        for change in (f"DELETE FROM {table}", f"UPDATE {table} SET id = 7"):
            with pytest.raises(sqlite3.DatabaseError, match="never changed"): db.execute(change)

def test_a_ledger_with_other_tables_is_refused_in_one_line(tmp_path):
    with sqlite3.connect(tmp_path / "l.sqlite") as db: db.execute("CREATE TABLE reserved(id INTEGER PRIMARY KEY, nanos INTEGER)")
    with pytest.raises(DataError, match="l.sqlite: cannot be used as a ledger"): Ledger(tmp_path / "l.sqlite")

@pytest.mark.parametrize("content", [b"not a database, but long enough to be taken for one" * 50, b"\0" * 5000])
def test_another_file_is_refused_in_one_line_and_left_alone(content, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match="notes.txt: cannot be used as a ledger"): Ledger(path)
    assert path.read_bytes() == content

def test_an_answer_that_no_longer_fits_is_a_failed_row_and_is_not_paid_for_again(ledger):
    ask(ledger, {"a": call("x")}, lambda c: Reply(Loud(word="quiet"), (1, 1)))
    got = ask(ledger, {"a": call("x")}, lambda c: 1 / 0)
    assert got.failed == {"a": "the answer in the ledger no longer fits the schema"}

def test_what_is_no_failure_of_a_call_is_not_taken_for_one(ledger):
    with pytest.raises(ZeroDivisionError): ask(ledger, {"a": call("x")}, lambda c: 1 / 0)
    assert ledger.spent()["open"] == 1, "whether it was paid for is not known, so it counts"

def test_ctrl_c_stops_waiting_threads_and_sends_nothing_more(ledger):
    sent, together = [], threading.Barrier(3)
    def send(c):
        sent.append(c)
        if together.wait() == 0: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        raise Failed("500", wait=30.)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt): ask(ledger, calls(50), send, workers=3)
    assert len(sent) == 3 and time.monotonic() - start < 20

def test_ctrl_c_while_calls_are_handed_out_sends_nothing_more(ledger):
    sent, many = [], calls(5000)
    class Interrupted(dict):
        def __iter__(self):
            for n, id in enumerate(super().__iter__()):
                if n == 50: raise KeyboardInterrupt
                yield id
    def send(c):
        sent.append(c)
        time.sleep(.02)
        return Reply(Word(word="A"), (1, 1))
    with pytest.raises(KeyboardInterrupt): ask(ledger, Interrupted(many), send, workers=2)
    assert len(sent) < 20, "of the 50 that were handed out, the rest was cancelled"

def test_who_waits_for_another_programs_call_stops_when_all_stop(ledger):
    pace, said = Pace(), []
    def wait():
        try: paid(Ledger(ledger.path), call("x"), lambda c: 1 / 0, pace)
        except Failed as e: said.append(str(e))
    with ledger.alone(call("x").key, Pace()):
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        waiting.join(.5)
        assert waiting.is_alive(), "the other program is not done"
        pace.stopped.set()
        waiting.join(5)
        assert said == ["stopped"]

def test_without_the_extra_the_error_names_it(tmp_path):
    (tmp_path / "instructor.py").write_text("raise ImportError('no')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from rag_finetune.synthetic import sender; sender('openai/x')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert 'pip install "rag_finetune[llm]"' in done.stderr.splitlines()[-1]

@pytest.mark.parametrize("model", ["nobody/knows", "no-provider", "openai/x"])
def test_a_model_that_cannot_be_opened_is_one_line(model, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(DataError, match="model ") as error: sender(model)
    assert "\n" not in str(error.value)

# processes

def work(path, url, n, cap, acknowledged):
    "Ask for `n` rows, in an order of its own; write each prompt down once the ledger has its answer."
    wanted = list(calls(n).items())
    random.Random(acknowledged.name).shuffle(wanted)
    ledger = Ledger(path, Cap(tokens=cap))
    settle = ledger.settle
    with open(acknowledged, "a", buffering=1) as file:
        def told(id, used, outcome, call=None, answer=None):
            settle(id, used, outcome, call, answer)
            if answer: file.write(call.messages[-1]["content"] + "\n")
        ledger.settle = told
        got = ask(ledger, dict(wanted), sender("tiny", url, 10., "none"), workers=4, backoff=.01)
        file.write(f"done {len(got.answers)} {len(got.failed)}\n")

def asking(path, server, n, cap=None, name="said"): return child(work, path, server.url, n, cap, path.with_name(name))

def lines(path): return path.read_text().split("\n")[:-1] if path.exists() else []   # without one that was cut

def test_two_processes_share_answers_and_pay_once(tmp_path):
    def when_both_ask(prompt, schema):
        "Hold the answers back until more calls wait than one process has workers."
        until = time.monotonic() + 5
        while server.most_at_once <= 4 and time.monotonic() < until: time.sleep(.01)
        return loud(prompt, schema)
    with FakeLLM(when_both_ask) as server:
        both = [asking(tmp_path / "l.sqlite", server, 60, name=name) for name in "ab"]
        for p in both: p.join(120)
        assert [lines(tmp_path / name)[-1] for name in "ab"] == ["done 60 0"] * 2
        assert server.asked == {f"say {i}": 1 for i in range(60)}
        assert server.most_at_once > 4, "both were at work"

def test_two_processes_share_one_cap(tmp_path):
    cap = 20 * tokens("say 0")[2] + 3 * sum(call("say 0").most)
    with FakeLLM(loud, latency=.02) as server:
        both = [asking(tmp_path / "l.sqlite", server, 80, cap, name) for name in "ab"]
        for p in both: p.join(120)
        assert all(lines(tmp_path / name)[-1].startswith("done ") for name in "ab")
        ledger = Ledger(tmp_path / "l.sqlite")
        assert server.tokens == ledger.spent()["tokens"] <= cap
        assert ledger.spent()["answers"] == sum(server.answered.values()) >= 20

def stored(path):
    "prompt -> answer, as an outsider reads the file."
    with sqlite3.connect(path, timeout=60) as db: rows = db.execute("SELECT request, answer FROM answers").fetchall()
    return {json.loads(request)["messages"][-1]["content"]: answer for request, answer in rows}

KILLS, ROWS = 16, 300

@pytest.mark.slow
def test_kill_9_at_random_moments_loses_nothing_and_pays_nothing_twice(tmp_path):
    path, said, rng, faults = tmp_path / "l.sqlite", tmp_path / "said", random.Random(0), Counter()
    Ledger(path).db.close()
    def fault(prompt, nth):
        name = rng.choice(["429", "500", "drop", "cut", "cut json", "schema", "body"]) if nth < 4 and rng.random() < .15 else None
        faults[name] += 1
        return name
    with FakeLLM(loud, fault, latency=.03) as server:
        for _ in range(KILLS):
            before, counted = stored(path), Counter(server.asked)
            process = asking(path, server, ROWS)
            begun, enough = time.monotonic(), sum(server.asked.values()) + rng.randint(1, 24)
            while sum(server.asked.values()) < enough and time.monotonic() - begun < 60: time.sleep(.002)
            time.sleep(rng.uniform(0, .05))   # of the 30 ms that an answer takes, and the moment in which it is written down
            process.kill()
            process.join()
            after = stored(path)
            assert process.exitcode == -signal.SIGKILL and set(lines(said)) <= after.keys(), "an answer that was acknowledged is gone"
            assert before.items() <= after.items(), "an answer changed"
            assert all(server.asked[p] == counted[p] for p in before), "an answered call was sent again"
            assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert KILLS <= len(stored(path)) < ROWS, f"{len(stored(path))} rows: the kills must fall in the middle of the work"
        before, counted, acknowledged = stored(path), Counter(server.asked), len(lines(said))
        asking(path, server, ROWS).join(200)
        assert lines(said)[-1] == f"done {ROWS} 0"
        assert all(server.asked[p] == counted[p] for p in before)
        assert stored(path) == {f"say {i}": json.dumps({"word": f"SAY {i}"}, separators=(",", ":")) for i in range(ROWS)}
        twice = sum(n > 1 for n in server.answered.values())
    spent = Ledger(path).spent()
    assert spent["answers"] == ROWS and spent["tokens"] >= server.tokens, "what was cut off in flight counts in full"
    assert twice <= spent["open"] <= 4 * KILLS, "only a call that was in flight may be repeated"
    print(f"{KILLS} kills; {acknowledged} acknowledged by then; {spent['open']} in flight, {twice} of them answered twice; {faults}")
