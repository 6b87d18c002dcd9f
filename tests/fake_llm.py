"""A model that is none: an OpenAI-compatible server on 127.0.0.1, for the real clients to talk to, with faults on cue.

    with FakeLLM(lambda prompt, schema: {"word": prompt.upper()}, lambda prompt, nth: "429" if nth == 0 else None) as server:
        openai.OpenAI(base_url=server.url, api_key="none").chat.completions.create(...)
"""
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STATUS = {"400": (400, "bad_request"), "401": (401, "invalid_api_key"), "404": (404, "model_not_found"),
          "429": (429, "rate_limit_exceeded"), "quota": (429, "insufficient_quota"),
          "500": (500, "server_error"), "503": (503, "overloaded"),
          "408": (408, "timeout"), "502": (502, "bad_gateway"), "504": (504, "gateway_timeout")}
# the faults, besides those: "cut" (out of tokens, says so), "cut json" (out of tokens, does not say so), "schema" (fields of another kind),
# "refusal", "filter" (no tool call; the provider's own words for why), "body" (half of the HTTP body), "drop" (no answer at all),
# "slow" (an answer that comes after `slow` seconds), "no usage", "much" (more tokens than were allowed)
MUCH = 100_000

class FakeLLM(ThreadingHTTPServer):
    "Answers each prompt with what `answer` makes of it, unless `fault` names a fault for the nth time that it is asked."
    daemon_threads = True

    def __init__(self, answer: Callable[[str, dict], dict], fault: Callable[[str, int], str | None] = lambda prompt, nth: None,
                 latency: float = 0., retry_after: Callable[[], str] = lambda: "0", slow: float = 3.):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.fault, self.latency, self.retry_after, self.slow = answer, fault, latency, retry_after, slow
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()                      # prompt -> requests that came in
        self.answered: Counter[str] = Counter()                   # prompt -> good answers that were sent to the end
        self.times: dict[str, list[float]] = defaultdict(list)    # prompt -> when it was asked
        self.tokens = 0                                           # billed: of every completion sent, good or not
        self.at_once = self.most_at_once = 0
        self.payloads: list[dict] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str: return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": .02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address): pass  # a client that was killed

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeLLM

    def log_message(self, *_): pass

    def do_POST(self):
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt, server = payload["messages"][-1]["content"], self.server
        with server.lock:
            nth = server.asked[prompt]
            server.asked[prompt] += 1
            server.times[prompt].append(time.monotonic())
            server.payloads.append(payload)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try: self.reply(payload, prompt, server.fault(prompt, nth))
        finally:
            with server.lock: server.at_once -= 1

    def do_CONNECT(self):
        "As a proxy that lets nobody through: what a client would have sent to a provider's own address is counted by host."
        with self.server.lock: self.server.asked[self.path] += 1
        self.send({}, 502)

    def reply(self, payload, prompt, fault):
        server = self.server
        time.sleep(server.slow if fault == "slow" else server.latency)
        if fault == "drop": self.close_connection = True; return
        if fault in STATUS:
            status, code = STATUS[fault]
            self.send({"error": {"message": f"on cue: {code}", "code": code, "type": code}}, status)
            return
        body = completion(payload, prompt, server.answer, fault)
        with server.lock: server.tokens += tokens(prompt)[2]
        self.send(body, 200, cut=fault == "body")
        if fault in (None, "slow", "no usage", "much"):
            with server.lock: server.answered[prompt] += 1

    def send(self, body, status, cut=False):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status in (429, 503): self.send_header("Retry-After", self.server.retry_after())
        self.end_headers()
        self.wfile.write(text[:len(text) // 2] if cut else text)
        self.wfile.flush()
        if cut: self.close_connection = True

def tokens(prompt: str) -> tuple[int, int, int]:
    "What a completion is billed for: in, out, both."
    return len(prompt.split()) + 10, 7, len(prompt.split()) + 17

def completion(payload, prompt, answer, fault):
    function = payload["tools"][0]["function"]
    arguments = json.dumps(answer(prompt, function["parameters"]))
    if fault in ("cut", "cut json"): arguments = arguments[:-3]
    if fault == "schema": arguments = json.dumps({"something": ["else"]})
    call = {"id": "call_1", "type": "function", "function": {"name": function["name"], "arguments": arguments}}
    spent = dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), (0, MUCH, MUCH) if fault == "much" else tokens(prompt)))
    message, finish = {"role": "assistant", "content": None, "tool_calls": [call]}, "length" if fault == "cut" else "stop"
    if fault == "refusal": message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
    if fault == "filter": message, finish = {"role": "assistant", "content": None}, "content_filter"
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": payload["model"],
            "choices": [{"index": 0, "finish_reason": finish, "message": message}],
            **({} if fault == "no usage" else {"usage": spent})}
