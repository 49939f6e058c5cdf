import assert from "node:assert/strict"
import { test } from "node:test"

import { fakeEndpoint, holding, openPage, settled, tokens } from "./support.mjs"

const urls = (page) => page.sockets.map((socket) => socket.url.replace("wss://example.com", ""))

test("a token string is used for one dial; without a tokenURL the first loss stops the manager", (t) => {
  const page = openPage(t)
  const { manager, states, codes } = page.connect("/ws/", "wst_a")
  manager.sendJSON({ type: "a" })

  page.socket.drop()
  page.tick(60000)

  assert.deepEqual(urls(page), ["/ws/wst_a"])
  assert.equal(manager.state, "closed")
  assert.equal(states.at(-1).reason, "no_token")
  assert.deepEqual(codes(), ["no_token", "no_token"], "the queued message and the stop")
  assert.equal(page.timers.size, 0)
})

test("reconnect() does not use a token string again", (t) => {
  const page = openPage(t)
  const { manager, codes } = page.connect("/ws/", "wst_a")
  page.socket.accept()

  manager.reconnect()
  manager.reconnect()

  assert.equal(page.sockets.length, 1)
  assert.equal(page.socket.readyState, 2)
  assert.equal(manager.state, "closed")
  assert.deepEqual(codes(), ["no_token", "no_token"])
})

test("with a token string and a tokenURL, the second dial requests a token", async (t) => {
  const page = openPage(t)
  const requests = fakeEndpoint(t, { body: { token: "wst_b", expires_in: 60 } }, { body: { token: "wst_c" } })
  page.connect("/ws/", "wst_a", { tokenURL: "/websocket/token/" })
  assert.equal(requests.length, 0)

  page.socket.drop()
  await page.pass(1700)
  page.socket.accept()
  page.socket.drop()
  await page.pass(2300)

  assert.deepEqual(urls(page), ["/ws/wst_a", "/ws/wst_b", "/ws/wst_c"])
  assert.equal(requests.length, 2)
})

test("without a token the first dial requests one from the tokenURL", async (t) => {
  const page = openPage(t)
  fakeEndpoint(t, { body: { token: "wst_b" } })
  page.connect("/ws/", null, { tokenURL: "/websocket/token/" })

  assert.equal(page.sockets.length, 0)
  await settled()

  assert.deepEqual(urls(page), ["/ws/wst_b"])
})

test("the tokenURL gets a same-origin POST with the path, CSRF token and JSON type", async (t) => {
  const page = openPage(t)
  const requests = fakeEndpoint(t, { body: { token: "wst_b" } })
  page.connect("/ws/caf\u00e9 1/?room=1", null, { tokenURL: "/websocket/token/", csrfToken: "csrf-1" })
  await settled()

  const [{ signal, ...request }] = requests
  const { method, credentials } = request
  assert.equal(new Request("https://example.com/", { method, credentials }).credentials, "same-origin")
  assert.deepEqual(request, {
    url: "/websocket/token/",
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRFToken": "csrf-1" },
    body: { path: "/ws/caf%C3%A9%201/", url: "/websocket/token/" },
    redirect: "manual",
  })
  assert.equal(signal.aborted, false)
  assert.equal(page.socket.url, "wss://example.com/ws/caf%C3%A9%201/wst_b?room=1")
})

const own = holding({ csrfToken: "of-attribute" })
const sources = [
  ["a csrfToken function", { csrfToken: () => "of-function" }, { ...own, cookie: "csrftoken=of-cookie" }, "of-function"],
  ["the csrftoken cookie", {}, { ...own, cookie: "xcsrftoken=no; csrftoken=of-cookie; b=2" }, "of-cookie"],
  ["the last csrftoken cookie, as Django reads it", {}, { cookie: "csrftoken=first; csrftoken=last" }, "last"],
  ["the script's data-csrf-token, if the cookie cannot be read", {}, { ...own, cookie: "a=1" }, "of-attribute"],
  ["the body's data-csrf-token", {}, holding({ csrfToken: "of-body" }, "body"), "of-body"],
  [
    "the cookie that the page names",
    {},
    { ...holding({ csrfToken: "no", csrfCookie: "site.csrf" }), cookie: "csrftoken=old; site.csrf=named" },
    "named",
  ],
  [
    "the attribute, if the page names no cookie",
    {},
    { ...holding({ csrfToken: "of-session", csrfCookie: "" }), cookie: "csrftoken=old" },
    "of-session",
  ],
  ["nothing, if there is none", {}, { cookie: "a=1" }, undefined],
  ["nothing, if there is no document", {}, null, undefined],
]

for (const [name, options, document, expected] of sources) {
  test(`the CSRF token comes from ${name}`, async (t) => {
    const page = openPage(t, { document })
    const requests = fakeEndpoint(t, { body: { token: "wst_b" } })
    page.connect("/ws/", null, { tokenURL: "/websocket/token/", ...options })
    await settled()

    assert.equal(requests[0].headers["X-CSRFToken"], expected)
    assert.equal("X-CSRFToken" in requests[0].headers, expected !== undefined)
  })
}

test("a CSRF token in a text of users is not taken", async (t) => {
  const written = { tag: "p", dataset: { csrfToken: "of-a-user", csrfHeader: "X-User", csrfCookie: "theirs" } }
  const document = { ...holding({ csrfToken: "of-the-tag" }, "script", written), cookie: "theirs=cookie" }
  const page = openPage(t, { document })
  const requests = fakeEndpoint(t, { body: { token: "wst_b" } })
  page.connect("/ws/", null, { tokenURL: "/websocket/token/" })
  await settled()

  // The selector of earlier versions.
  assert.equal(page.document.querySelector("[data-csrf-token]").dataset.csrfToken, "of-a-user")
  assert.equal(requests[0].headers["X-CSRFToken"], "of-the-tag")
})

test("a tag without a CSRF token names the cookie and the header", async (t) => {
  const names = { csrfCookie: "site.csrf", csrfHeader: "X-Site" }
  const tag = { socketPath: "/ws/", tokenUrl: "/token/", ...names }
  const cookie = "csrftoken=old; site.csrf=named"
  for (const [document, value] of [
    [holding(tag), "named"],
    // Another element has the token, in a page with CSRF_USE_SESSIONS.
    [holding({ ...tag, csrfCookie: "" }, "script", { tag: "body", dataset: { csrfToken: "own" } }), "own"],
  ]) {
    const page = openPage(t, { document: { ...document, cookie } })
    const requests = fakeEndpoint(t, { body: { token: "wst_b" } })
    page.connect(null)
    await settled()

    assert.deepEqual(requests[0].headers, { "Content-Type": "application/json", "X-Site": value })
    t.mock.timers.reset()
    t.mock.restoreAll()
  }
})

for (const [name, options, document] of [
  ["the option csrfHeader", { csrfHeader: "X-Site" }, holding({ csrfToken: "own", csrfHeader: "X-Page" })],
  ["the page", {}, holding({ csrfToken: "own", csrfHeader: "X-Site" })],
]) {
  test(`${name} names the header of the CSRF token`, async (t) => {
    const page = openPage(t, { document })
    const requests = fakeEndpoint(t, { body: { token: "wst_b" } })
    page.connect("/ws/", null, { tokenURL: "/websocket/token/", ...options })
    await settled()

    assert.deepEqual(requests[0].headers, { "Content-Type": "application/json", "X-Site": "own" })
  })
}

/** The CSRF tokens of the requests for two dials, and the last state. */
async function dialTwice(t, document, ...answers) {
  const page = openPage(t, { document })
  const requests = fakeEndpoint(t, ...answers)
  const { states } = page.connect("/ws/", null, { tokenURL: "/websocket/token/" })
  await settled()
  page.socket?.accept()
  page.socket?.drop()
  await page.pass(1700)
  return [requests.map(({ headers }) => headers["X-CSRFToken"]), states.at(-1)]
}

test("after a refused cookie the page's own CSRF token is used, for this dial and the next", async (t) => {
  const document = { ...own, cookie: "csrftoken=stale" }
  const answers = [{ status: 403 }, { body: { token: "wst_b" } }, { body: { token: "wst_c" } }]
  const [used, { state }] = await dialTwice(t, document, ...answers)

  assert.deepEqual(used, ["stale", "of-attribute", "of-attribute"])
  assert.equal(state, "connecting")
})

test("if the page's own CSRF token is refused later, the cookie is used again", async (t) => {
  const document = { ...own, cookie: "csrftoken=cookie" }
  const answers = [{ status: 403 }, { body: { token: "wst_b" } }, { status: 403 }, { body: { token: "wst_c" } }]
  const [used, { state }] = await dialTwice(t, document, ...answers)

  assert.deepEqual(used, ["cookie", "of-attribute", "of-attribute", "cookie"])
  assert.equal(state, "connecting")
})

for (const [name, document, used] of [
  ["both CSRF tokens are refused", { ...own, cookie: "csrftoken=cookie" }, ["cookie", "of-attribute"]],
  ["the only CSRF token is refused", { cookie: "csrftoken=cookie" }, ["cookie"]],
]) {
  test(`if ${name}, the manager stops as token_refused`, async (t) => {
    const [requested, { state, reason }] = await dialTwice(t, document, { status: 403 })

    assert.deepEqual(requested, used)
    assert.deepEqual([state, reason], ["closed", "token_refused"])
  })
}

test("a token endpoint that refuses the path stops the manager: the next request would be the same", async (t) => {
  const page = openPage(t)
  const requests = fakeEndpoint(t, { status: 400, body: { error: { code: "bad_message", message: "..." } } })
  const { manager, errors } = page.connect("/ws/", null, { tokenURL: "/websocket/token/" })
  await page.pass(60000)

  assert.equal(manager.state, "closed")
  assert.deepEqual(errors.map(({ code, cause }) => [code, cause.message]), [["token_refused", "tokenURL answered 400"]])
  assert.equal(requests.length, 1)
})

test("tokenPath replaces the path that tokens are for", async (t) => {
  for (const [tokenPath, path] of [["/ws/", "/ws/"], ["", ""], [null, "/socket/"], [undefined, "/socket/"]]) {
    const page = openPage(t)
    const requests = fakeEndpoint(t, { body: { token: "wst_b" } })
    page.connect("/socket/", null, { tokenURL: "/api/token/", tokenPath })
    await settled()

    assert.deepEqual(requests[0].body, { path, url: "/api/token/" })
    assert.equal(page.socket.url, "wss://example.com/socket/wst_b")
    t.mock.timers.reset()
    t.mock.restoreAll()
  }
})

test("a token function is called once for each dial, with attempt and signal", async (t) => {
  const page = openPage(t)
  const ask = tokens()
  page.connect("/ws/", ask)
  await settled()
  page.socket.drop()
  await page.pass(1700)

  assert.deepEqual(urls(page), ["/ws/token-1", "/ws/token-2"])
  assert.deepEqual(ask.questions.map(({ attempt }) => attempt), [1, 2])
  assert.deepEqual(ask.questions.map(({ signal }) => signal.aborted), [true, false])
})

test("a token function is preferred to the tokenURL", async (t) => {
  const page = openPage(t)
  const requests = fakeEndpoint(t, { body: { token: "wst_b" } })
  page.connect("/ws/", tokens(), { tokenURL: "/websocket/token/" })
  await settled()

  assert.deepEqual(urls(page), ["/ws/token-1"])
  assert.equal(requests.length, 0)
})

const failures = {
  "throws": () => {
    throw new Error("no")
  },
  "rejects": () => Promise.reject(new Error("no")),
  "rejects with nothing": () => Promise.reject(),
  "answers nothing": () => undefined,
  "answers an empty string": () => "",
  "answers an empty token": async () => ({ token: "" }),
  "answers a number": async () => 7,
  "rejects with status 500": () => Promise.reject(Object.assign(new Error("no"), { status: 500 })),
}

for (const [name, fail] of Object.entries(failures)) {
  test(`a token function that ${name} is called again later`, async (t) => {
    const page = openPage(t)
    let asked = 0
    const { manager, states, errors } = page.connect("/ws/", (question) => (++asked === 1 ? fail(question) : "wst_b"))
    await settled()
    assert.deepEqual(states.at(-1), { state: "waiting", reason: "token_failed", attempt: 2, delay: 1700 })
    assert.deepEqual(errors, [])

    await page.pass(1700)
    page.socket.accept()

    assert.equal(manager.state, "open")
    assert.deepEqual(urls(page), ["/ws/wst_b"])
  })
}

test("a token function that hangs is aborted after 10 s, and its late token is dropped", async (t) => {
  const page = openPage(t)
  const asked = []
  const { states } = page.connect("/ws/", ({ signal }) => new Promise((answer) => asked.push({ signal, answer })))

  await page.pass(10000)
  assert.equal(asked[0].signal.aborted, true)
  assert.equal(states.at(-1).reason, "timeout")
  asked[0].answer("late")
  await page.pass(1700)
  asked[0].answer("later")
  asked[1].answer("wst_b")
  await settled()

  assert.deepEqual(urls(page), ["/ws/wst_b"])
})

for (const [act, state, dials] of [["close", "closed", 0], ["reconnect", "connecting", 1]]) {
  test(`${act}() from inside the abort of a token call wins`, async (t) => {
    const page = openPage(t)
    let asked = 0
    const { manager } = page.connect("/ws/", ({ signal }) => {
      if (++asked > 1) return `token-${asked}`
      signal.addEventListener("abort", () => manager[act]())
      return new Promise(() => {})
    })
    await page.pass(10000)

    assert.equal(manager.state, state)
    assert.equal(page.sockets.filter(({ readyState }) => readyState < 2).length, dials)
    assert.equal(page.timers.size, dials)
  })
}

test("the user of an outdated token call is ignored", async (t) => {
  const page = openPage(t)
  const asked = []
  const { manager, errors } = page.connect("/ws/", () => new Promise((answer) => asked.push(answer)))
  await settled()
  manager.reconnect()
  await settled()
  asked[0]({ token: "wst_a", identity: "u-2" })
  await settled()
  asked[1]({ token: "wst_b", identity: "u-1" })
  await settled()
  page.socket.accept()
  page.socket.drop()
  await page.pass(1700)
  asked[2]({ token: "wst_c", identity: "u-1" })
  await settled()
  page.socket.accept()

  assert.deepEqual(urls(page), ["/ws/wst_b", "/ws/wst_c"])
  assert.equal(manager.state, "open")
  assert.deepEqual(errors, [])
})

const refusals = [
  ["status 401", { status: 401 }, "signed_out"],
  ["status 403", { status: 403 }, "token_refused"],
  ["fatal", { fatal: true }, "token_refused"],
]

for (const [name, marks, reason] of refusals) {
  test(`a token function that fails with ${name} stops the manager with an error`, async (t) => {
    const page = openPage(t)
    const cause = Object.assign(new Error("no"), marks)
    const { manager, states, errors } = page.connect("/ws/", () => Promise.reject(cause))
    await settled()

    assert.equal(manager.state, "closed")
    assert.equal(states.at(-1).reason, reason)
    assert.equal(errors[0].code, reason)
    assert.equal(errors[0].cause, cause)
    assert.equal(page.timers.size, 0)
  })
}

for (const [status, reason] of [[401, "signed_out"], [403, "token_refused"]]) {
  test(`a tokenURL that answers ${status} stops the manager with an error`, async (t) => {
    const page = openPage(t)
    fakeEndpoint(t, { status })
    const { manager, errors } = page.connect("/ws/", null, { tokenURL: "/websocket/token/" })
    const promise = manager.request({ type: "a" })
    await assert.rejects(promise, { code: "closed" })

    assert.equal(manager.state, "closed")
    assert.equal(errors[0].code, reason)
    assert.equal(errors[0].cause.status, status)
  })
}

const page200 = { body: "<!doctype html><form>", headers: { "Content-Type": "text/html; charset=utf-8" } }
const logins = [
  ["a redirect, in a browser", { status: 0 }, "tokenURL answered 0"],
  ["a redirect, in Node", { status: 302, headers: { Location: "/login/" } }, "tokenURL answered 302"],
  ["a page", page200, "tokenURL answered 200"],
  ["a page of XHTML", { ...page200, headers: { "Content-Type": "application/xhtml+xml" } }, "tokenURL answered 200"],
]

for (const [name, answer, message] of logins) {
  test(`a tokenURL that answers ${name} stops the manager as signed_out`, async (t) => {
    const page = openPage(t)
    const requests = fakeEndpoint(t, answer)
    const { manager, states, errors } = page.connect("/ws/", null, { tokenURL: "/websocket/token/" })
    await page.pass(60000)

    assert.equal(manager.state, "closed")
    assert.equal(states.at(-1).reason, "signed_out")
    assert.deepEqual(errors.map(({ code, cause }) => [code, cause.status, cause.message]), [["signed_out", 401, message]])
    assert.equal(requests.length, 1)
    assert.equal(page.timers.size, 0)
  })

  test(`after 4410 a tokenURL that answers ${name} is requested once more`, async (t) => {
    const page = openPage(t)
    const requests = fakeEndpoint(t, { body: { token: "wst_a" } }, answer)
    const { manager, states } = page.connect("/ws/", null, { tokenURL: "/websocket/token/" })
    await settled()
    page.socket.accept()
    page.socket.drop(4410)
    await page.pass(60000)

    assert.equal(manager.state, "closed")
    assert.equal(states.at(-1).reason, "signed_out")
    assert.equal(requests.length, 3)
  })
}

test("a token in JSON is used whatever the type of the answer is", async (t) => {
  const page = openPage(t)
  fakeEndpoint(t, { ...page200, body: { token: "wst_a" } })
  page.connect("/ws/", null, { tokenURL: "/websocket/token/" })
  await settled()

  assert.deepEqual(urls(page), ["/ws/wst_a"])
})

test("an error page is a failure, not a login", async (t) => {
  const page = openPage(t)
  fakeEndpoint(t, { ...page200, status: 502 })
  const { states } = page.connect("/ws/", null, { tokenURL: "/websocket/token/" })
  await settled()

  assert.equal(states.at(-1).reason, "token_failed")
})

const outages = [
  ["fails on the network", new TypeError("Failed to fetch")],
  ["answers 500", { status: 500 }],
  ["answers 404", { status: 404 }],
  ["answers 400 without a body, as a proxy does", { status: 400, body: null }],
  ["answers 400 with a page of a proxy", { status: 400, body: "<h1>wst_secret</h1>", headers: page200.headers }],
  ["answers 400 with the JSON of another server", { status: 400, body: { error: "bad_message" } }],
  ["answers 400 with the error of another server", { status: 400, body: { error: { code: "overloaded" } } }],
  ["answers 400 with null", { status: 400, body: "null" }],
  ["answers without JSON", { body: "wst_secret" }],
  ["answers null", { body: "null" }],
  ["answers nothing", { status: 204, body: null }],
]

for (const [name, answer] of outages) {
  test(`a tokenURL that ${name} is requested again later`, async (t) => {
    const page = openPage(t)
    const logged = []
    fakeEndpoint(t, answer, { body: { token: "wst_b" } })
    const logger = { warn: (...values) => logged.push(String(values)) }
    const { states } = page.connect("/ws/", null, { tokenURL: "/websocket/token/", logger })
    await settled()
    assert.deepEqual(states.at(-1), { state: "waiting", reason: "token_failed", attempt: 2, delay: 1700 })

    await page.pass(1700)

    assert.deepEqual(urls(page), ["/ws/wst_b"])
    assert.equal(logged.length, 1)
    assert.doesNotMatch(logged[0], /wst_/)
  })
}

for (const [header, delay] of [["7", 8700], ["0", 1700], ["-9", 1700], ["Wed, 21 Oct 2026 07:28:00 GMT", 1700]]) {
  test(`Retry-After: ${header} makes the wait ${delay} ms`, async (t) => {
    const page = openPage(t)
    fakeEndpoint(t, { status: 503, headers: { "Retry-After": header } })
    const { states } = page.connect("/ws/", null, { tokenURL: "/websocket/token/" })
    await settled()

    assert.equal(states.at(-1).delay, delay)
  })
}

test("a Retry-After longer than a timer allows does not become a wait of 1 ms", async (t) => {
  const page = openPage(t)
  const requests = fakeEndpoint(t, { status: 503, headers: { "Retry-After": "99999999" } })
  page.connect("/ws/", null, { tokenURL: "/websocket/token/" })
  await settled()
  await page.pass(60000)

  assert.equal(requests.length, 1)
  assert.ok([...page.timers.values()].every((at) => at > Date.now() + 2000000000))
})

test("retryAfter of a token function's error is added to the wait", async (t) => {
  const page = openPage(t)
  const { states } = page.connect("/ws/", () => Promise.reject(Object.assign(new Error("busy"), { retryAfter: 2 })))
  await settled()

  assert.equal(states.at(-1).delay, 3700)
})

test("no token is in any event, error or log line", async (t) => {
  const page = openPage(t)
  const logged = []
  const log = (...values) => logged.push(JSON.stringify(values), ...values.map(String))
  fakeEndpoint(t, { body: { token: "wst_b" } })
  const { manager, states, errors } = page.connect("/ws/", "wst_a", {
    tokenURL: "/websocket/token/",
    logger: { debug: log, warn: log, error: log },
  })
  manager.sendJSON({ type: "a" }, () => {})
  page.socket.accept()
  page.socket.drop(4401)
  await page.pass(1700)
  page.socket.accept()
  page.socket.drop(4403)

  assert.equal(manager.state, "closed")
  assert.doesNotMatch(JSON.stringify([logged, states, errors]) + errors.map((error) => error.stack), /wst_/)
})

test("a message before the first dial is not lost if the string token has expired", async (t) => {
  const page = openPage(t)
  fakeEndpoint(t, { body: { token: "wst_b" } })
  const { manager, states, errors } = page.connect("/ws/", "wst_old", { tokenURL: "/websocket/token/" })
  manager.sendJSON({ type: "a" })

  page.socket.accept()
  page.socket.drop(4401)
  await page.pass(100)

  assert.deepEqual(page.sockets[0].sent, [])
  assert.ok(!states.some(({ state }) => state === "open"), "a page with a refused token was never open")
  page.socket.accept()
  page.tick(100)
  assert.deepEqual(page.socket.sent, [{ type: "a" }])
  assert.equal(manager.state, "open")
  assert.deepEqual(errors, [])
})

for (const [name, prove] of [
  ["100 ms", (page) => page.pass(100)],
  ["the ready message", (page) => page.socket.push({ key: "websocket.ready", identity: "ada" })],
  ["any other message", (page) => page.socket.push({ key: "note" })],
]) {
  test(`a string token is proven by ${name}`, async (t) => {
    const page = openPage(t)
    const { manager } = page.connect("/ws/", "wst_a")
    manager.sendJSON({ type: "a" })
    page.socket.accept()
    assert.equal(manager.state, "connecting")

    await prove(page)

    assert.equal(manager.state, "open")
    assert.deepEqual(page.socket.sent, [{ type: "a" }])
  })
}

test("the ready message of another user stops a page before its first message is sent", async (t) => {
  const page = openPage(t)
  const { manager, codes } = page.connect("/ws/", "wst_a", { identity: "ada" })
  manager.sendJSON({ type: "a" })
  page.socket.accept()

  page.socket.push({ key: "websocket.ready", identity: "ben" })

  assert.equal(manager.state, "closed")
  assert.deepEqual(page.sockets[0].sent, [])
  assert.ok(codes().includes("user_changed"))
})

for (const [name, token, options] of [
  ["a token function", () => tokens("u-1"), {}],
  ["a tokenURL", () => null, { tokenURL: "/websocket/token/" }],
]) {
  test(`the queue is not lost if a socket is closed right after it opens, with ${name}`, async (t) => {
    const page = openPage(t)
    fakeEndpoint(t, { body: { token: "wst_b" } }, { body: { token: "wst_c" } })
    const { manager, states, errors } = page.connect("/ws/", token(), options)
    manager.sendJSON({ type: "note" })
    await settled()
    page.socket.accept()
    page.socket.drop(4490)
    assert.ok(!states.some(({ state }) => state === "open"))

    await page.pass(1700)
    page.socket.accept()
    await page.pass(100)

    assert.deepEqual(page.sockets.map(({ sent }) => sent), [[], [{ type: "note" }]])
    assert.deepEqual(errors, [])
  })
}

test("with an empty queue and a new token the state is open at once", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect("/ws/", tokens("u-1"))
  await settled()
  page.socket.accept()

  assert.equal(manager.state, "open")
})

test("a token that is returned twice is used once, and requested again", async (t) => {
  const page = openPage(t)
  const given = ["wst_a", "wst_a", "wst_b"]
  const { states } = page.connect("/ws/", () => given.shift())
  await settled()
  page.socket.accept()
  page.socket.drop()
  await page.pass(1700)

  assert.equal(states.at(-1).reason, "token_failed")
  await page.pass(2300)
  assert.deepEqual(page.sockets.map(({ url }) => url), ["wss://example.com/ws/wst_a", "wss://example.com/ws/wst_b"])
})

test("the refusal of an outdated token call closes nothing", async (t) => {
  const page = openPage(t)
  const refuse = []
  const ask = () => new Promise((_, reject) => refuse.push(reject))
  const { manager, errors } = page.connect("/ws/", ask)
  await settled()

  manager.reconnect()
  await settled()
  refuse[0](Object.assign(new Error("late"), { status: 401 }))
  await settled()

  assert.equal(manager.state, "connecting")
  assert.deepEqual(errors, [])
})

test("a fatal error stops at once, also after 4410", async (t) => {
  const page = openPage(t)
  const ask = tokens("u-1")
  const { manager, states } = page.connect("/ws/", (question) => {
    if (ask.questions.length) throw Object.assign(new Error("no"), { fatal: true })
    return ask(question)
  })
  await settled()
  page.socket.accept()
  page.socket.drop(4410)
  await settled()

  assert.equal(manager.state, "closed")
  assert.equal(states.at(-1).reason, "signed_out")
})

for (const retryAfter of [7n, "7", 7]) {
  test(`an error's retryAfter may be a ${typeof retryAfter}`, async (t) => {
    const page = openPage(t)
    const { states } = page.connect("/ws/", () => {
      throw Object.assign(new Error("later"), { retryAfter })
    })
    await settled()

    assert.equal(states.at(-1).delay, 1700 + 7000)
  })
}

test("the constructor's error, which contains the token, is in no error of the manager", async (t) => {
  const page = openPage(t)
  globalThis.WebSocket = class {
    constructor(url) {
      throw new Error(url)
    }
  }
  const lines = []
  const note = (...line) => lines.push(...line)
  const { manager, errors, states } = page.connect("/ws/", "wst_secret", {
    tokenURL: "/websocket/token/",
    maxRetries: 0,
    logger: { debug: note, warn: note, error: note },
  })
  await settled()

  const reported = [...lines, ...errors, ...states].flatMap((each) => [each, each?.cause, each?.message, each?.stack])
  assert.equal(manager.state, "closed")
  assert.ok(errors.length)
  assert.ok(!reported.some((each) => String(each?.message ?? each).includes("wst_secret")))
})

test("tokenSource subprotocol offers each token with websocket.token, and not in the URL", async (t) => {
  const page = openPage(t)
  page.connect("/ws/chat/", tokens("u-1"), { tokenSource: "subprotocol" })
  await settled()
  page.socket.accept()
  page.socket.drop()
  await page.pass(1700)

  assert.deepEqual(page.sockets.map(({ url }) => url), Array(2).fill("wss://example.com/ws/chat/"))
  assert.deepEqual(page.sockets.map(({ protocols }) => protocols), [
    ["websocket.token", "token-1"],
    ["websocket.token", "token-2"],
  ])
})

test("without a token nothing is offered, and by default the token is in the path", async (t) => {
  const page = openPage(t)
  page.connect("/ws/", null, { tokenSource: "subprotocol" })
  page.connect("/ws/", "wst_a", { tokenSource: "path" })

  assert.deepEqual(page.sockets.map(({ url, protocols }) => [url, protocols]), [
    ["wss://example.com/ws/", []],
    ["wss://example.com/ws/wst_a", []],
  ])
})
