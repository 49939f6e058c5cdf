import assert from "node:assert/strict"
import { test } from "node:test"

import { fakeEndpoint, holding, openPage, settled, WebSocketManager } from "./support.mjs"

const addresses = [
  ["/ws/chat/", "wst_a", "wss://example.com/ws/chat/wst_a"],
  ["/ws/chat", "wst_a", "wss://example.com/ws/chat/wst_a"],
  ["/ws/chat//", "wst_a", "wss://example.com/ws/chat/wst_a"],
  ["/", "wst_a", "wss://example.com/wst_a"],
  ["/ws/chat/?room=1", "wst_a", "wss://example.com/ws/chat/wst_a?room=1"],
  ["/ws/chat/", "a/b?c#d%", "wss://example.com/ws/chat/a%2Fb%3Fc%23d%25"],
  ["/ws/chat", null, "wss://example.com/ws/chat"],
  ["/ws/chat/", undefined, "wss://example.com/ws/chat/"],
  ["/ws/chat/", "", "wss://example.com/ws/chat/"],
  ["ws/chat/", null, "wss://example.com/app/ws/chat/"],
  ["//other.example/ws/", null, "wss://other.example/ws/"],
  ["ws://other.example:8001/ws/", "wst_a", "ws://other.example:8001/ws/wst_a"],
  ["wss://other.example/ws", null, "wss://other.example/ws"],
  ["https://other.example/ws#part", null, "wss://other.example/ws"],
]

for (const [path, token, url] of addresses) {
  test(`path ${path} with token ${JSON.stringify(token)} dials ${url}`, (t) => {
    const page = openPage(t)

    page.connect(path, token)

    assert.deepEqual(page.sockets.map((socket) => socket.url), [url])
  })
}

test("an http page gives a ws: URL with its port", (t) => {
  const page = openPage(t, { href: "http://localhost:8000/" })

  page.connect("/ws/")

  assert.equal(page.socket.url, "ws://localhost:8000/ws/")
})

test("a full URL needs no page", (t) => {
  const page = openPage(t)
  delete globalThis.location

  page.connect("ws://example.com/ws/")

  assert.equal(page.socket.url, "ws://example.com/ws/")
})

test("without a path the manager reads path, token and tokenURL from the page", async (t) => {
  const attributes = { socketPath: "/ws/chat/", token: "wst_a", tokenUrl: "/token/" }
  const page = openPage(t, { document: holding(attributes) })
  const requests = fakeEndpoint(t, { body: { token: "wst_b" } })

  const manager = new WebSocketManager()
  page.socket.drop()
  await page.pass(2000)

  assert.deepEqual(page.sockets.map(({ url }) => url), ["wss://example.com/ws/chat/wst_a", "wss://example.com/ws/chat/wst_b"])
  assert.equal(requests[0].url, "/token/")
  assert.equal(manager.state, "connecting")
})

test("the page can name the path that its tokens are for, and its user", async (t) => {
  const attributes = { socketPath: "/socket/", tokenUrl: "/token/", tokenPath: "", identity: "ada" }
  const page = openPage(t, { document: holding(attributes) })
  const requests = fakeEndpoint(t, { body: { token: "wst_b", identity: "ada" } })

  WebSocketManager()
  WebSocketManager(null, null, { tokenPath: "/ws/" })
  await settled()

  assert.deepEqual(requests.map(({ body }) => body), [
    { path: "", url: "/token/" },
    { path: "/ws/", url: "/token/" },
  ])
  assert.equal(page.sockets.length, 2)
})

test("only the first manager uses the token of the page", (t) => {
  const page = openPage(t, { document: holding({ socketPath: "/ws/", token: "wst_a" }) })

  WebSocketManager()
  WebSocketManager()

  assert.deepEqual(page.sockets.map(({ url }) => url), ["wss://example.com/ws/wst_a", "wss://example.com/ws/"])
})

test("the page can require the token as a subprotocol", (t) => {
  const attributes = { socketPath: "/ws/", token: "wst_a", tokenSource: "subprotocol" }
  const page = openPage(t, { document: holding(attributes) })

  WebSocketManager()

  assert.equal(page.socket.url, "wss://example.com/ws/")
  assert.deepEqual(page.socket.protocols, ["websocket.token", "wst_a"])
})

test("arguments override the token and options of the page", async (t) => {
  const attributes = { socketPath: "/ws/", token: "wst_a", tokenUrl: "/token/" }
  const page = openPage(t, { document: holding(attributes) })
  const requests = fakeEndpoint(t, { body: { token: "wst_c" } })

  WebSocketManager(null, "wst_b", { tokenURL: "/other/" })
  page.socket.drop()
  await page.pass(2000)

  assert.equal(page.sockets[0].url, "wss://example.com/ws/wst_b")
  assert.equal(requests[0].url, "/other/")
})

test("the body can have the attributes, and elements that users can write are ignored", (t) => {
  const attributes = { socketPath: "/ws/" }
  const page = openPage(t, { document: holding(attributes, "body") })
  WebSocketManager()
  globalThis.document.querySelector = holding(attributes, "p").querySelector

  assert.equal(page.socket.url, "wss://example.com/ws/")
  assert.throws(() => WebSocketManager(), { name: "TypeError", message: /path must be a string, not undefined/ })
})

test("with a path nothing is read from the page", (t) => {
  const page = openPage(t, { document: holding({ socketPath: "/ws/", token: "wst_a" }) })

  WebSocketManager("/ws/other/")

  assert.equal(page.socket.url, "wss://example.com/ws/other/")
})

const mistakes = [
  [[null], /path must be a string, not null/],
  [[undefined], /path must be a string, not undefined/],
  [[7], /path must be a string, not number/],
  [["ftp://example.com/"], /path must be a full wss: URL/],
  [["/ws/", 7], /token must be a string, a function or null, not number/],
  [["/ws/", { token: "wst_secret" }], /token must be a string, a function or null, not object/],
  [["/ws/", true], /token must be .* not boolean/],
]

for (const [args, message] of mistakes) {
  test(`WebSocketManager(${JSON.stringify(args).slice(1, -1)}) throws a TypeError that names the mistake`, (t) => {
    const page = openPage(t)

    assert.throws(() => WebSocketManager(...args), { name: "TypeError", message })
    assert.equal(page.sockets.length, 0)
    assert.equal(page.timers.size, 0)
  })
}

test("a relative path without a page throws a TypeError that names the path", (t) => {
  openPage(t)
  delete globalThis.location

  assert.throws(() => WebSocketManager("/ws/"), { name: "TypeError", message: /path/ })
})

test("new is optional and instanceof works with and without it", (t) => {
  openPage(t)

  const called = WebSocketManager("/ws/")
  const constructed = new WebSocketManager("/ws/")

  assert.ok(called instanceof WebSocketManager)
  assert.ok(constructed instanceof WebSocketManager)
  assert.equal(called.constructor, WebSocketManager)
  assert.equal(called.state, "connecting")
})

test("a subclass overrides methods and calls the base through super", (t) => {
  const page = openPage(t)
  class Chat extends WebSocketManager {
    constructor(room) {
      super(`/ws/${room}/`)
    }

    sendJSON(message, replyHandler) {
      return super.sendJSON({ ...message, room: 1 }, replyHandler)
    }
  }

  const chat = new Chat("blue")
  page.socket.accept()
  chat.sendJSON({ type: "say" })

  assert.ok(chat instanceof Chat)
  assert.ok(chat instanceof WebSocketManager)
  assert.deepEqual(page.socket.sent, [{ type: "say", room: 1 }])
})
