import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { readFile } from "node:fs/promises"
import { createServer } from "node:http"
import { test } from "node:test"
import { promisify } from "node:util"
import { runInNewContext } from "node:vm"

import { WebSocketServer } from "ws"

import { FakeSocket, fakeEndpoint, openPage, script, settled, tokens, WebSocketManager } from "./support.mjs"
import { TopicServer } from "./topic_server.mjs"

const run = promisify(execFile)

/** Run `code` in a new process of Node with its native WebSocket; returns what it prints, as JSON. */
async function runInNode(code) {
  const flags = ["--disable-warning=ExperimentalWarning", "--experimental-websocket"]
  const start = `const WebSocketManager = require(${JSON.stringify(script.pathname)})\n`
  const { stdout } = await run(process.execPath, [...flags, "-e", start + code], { timeout: 30_000 })
  return JSON.parse(stdout)
}

/** Listen with an HTTP server; returns the URL of a socket there. */
async function listen(t, handler) {
  const server = createServer(handler)
  t.after(() => server.close())
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening))
  return { server, url: `ws://127.0.0.1:${server.address().port}/` }
}

const refusing = {
  "closed port": async (t) => {
    const { server, url } = await listen(t)
    await new Promise((closed) => server.close(closed))
    return url
  },
  "server that answers 403": async (t) => {
    const { url } = await listen(t, (request, response) => response.writeHead(403).end())
    return url
  },
}

for (const [name, start] of Object.entries(refusing)) {
  test(`with Node's own WebSocket, the next dial to a ${name} waits for no time limit`, async (t) => {
    const url = await start(t)
    const { events, ms } = await runInNode(`
      const began = Date.now()
      const events = []
      const options = { backoff: () => 10, maxRetries: 2, logger: false }
      const manager = new WebSocketManager(${JSON.stringify(url)}, null, options)
      manager.on("state", ({ state, reason }) => {
        events.push([state, reason])
        if (state === "closed") console.log(JSON.stringify({ events, ms: Date.now() - began }))
      })`)

    const again = [["waiting", "disconnected"], ["connecting", "disconnected"]]
    assert.deepEqual(events, [...again, ...again, ["closed", "max_retries"]])
    assert.ok(ms < 8000, `${ms} ms`)
  })
}

test("with Node's own fetch, a redirect to a login page stops the manager as signed_out", async (t) => {
  const asked = []
  const { server } = await listen(t, ({ url, method }, response) => {
    asked.push([method, url])
    if (url === "/token/") response.writeHead(302, { Location: "/login/" }).end()
    else response.writeHead(200, { "Content-Type": "text/html" }).end("<!doctype html><form>")
  })
  const tokenURL = `http://127.0.0.1:${server.address().port}/token/`
  const state = await runInNode(`
    const options = { tokenURL: ${JSON.stringify(tokenURL)}, logger: false }
    const manager = new WebSocketManager("ws://127.0.0.1:1/", null, options)
    manager.on("state", ({ state, reason }) => {
      console.log(JSON.stringify([state, reason]))
      manager.close()
    })`)

  assert.deepEqual(state, ["closed", "signed_out"])
  assert.deepEqual(asked, [["POST", "/token/"]])
})

test("with Node's own WebSocket, a subscription gets what was published while the connection was lost", async (t) => {
  const { server, url } = await listen(t)
  const asked = []
  new WebSocketServer({ server }).on("connection", (socket) => {
    const send = (message) => socket.send(JSON.stringify(message))
    send({ key: "websocket.ready", identity: "u-1", topics: true })
    socket.on("message", (text) => {
      const { reply_key: key, subscriptions } = JSON.parse(text)
      asked.push(subscriptions)
      const isFirst = asked.length === 1
      const messages = isFirst ? [] : [{ offset: 8, data: { n: 8 } }]
      const answer = { topic: "orders/1", epoch: "e1", offset: isFirst ? 6 : 8, recovered: !isFirst, messages }
      send({ key, data: { subscriptions: [answer] } })
      send({ key: "websocket.topic", topic: "orders/1", offset: answer.offset + 1, data: { n: answer.offset + 1 } })
      if (isFirst) socket.close(4000)
    })
  })
  const log = await runInNode(`
    const manager = new WebSocketManager(${JSON.stringify(url)}, null, { backoff: () => 10 })
    const log = []
    const subscription = manager.subscribe("orders/1", ({ n }, { offset }) => {
      log.push([n, offset])
      if (n < 9) return
      console.log(JSON.stringify(log))
      manager.close()
    })
    subscription.on("state", ({ state, reason }) => log.push([state, reason]))`)

  assert.deepEqual(log, [["live", null], [7, 7], ["subscribing", "disconnected"], [8, 8], ["live", null], [9, 9]])
  assert.deepEqual(asked, [
    [{ topic: "orders/1" }],
    [{ topic: "orders/1", since: { epoch: "e1", offset: 7 } }],
  ])
})

// A runtime without a WebSocket

for (const [name, token] of [["no token", null], ["a token", "wst_a"], ["a token function", tokens()]]) {
  test(`without a global WebSocket a manager with ${name} stops with one error`, async (t) => {
    const page = openPage(t)
    delete globalThis.WebSocket
    const { manager, states, errors } = page.connect("/ws/", token)
    await assert.rejects(manager.request({ type: "a" }), { code: "no_websocket" })
    await page.pass(60000)

    assert.equal(manager.state, "closed")
    assert.deepEqual(states.map(({ state, reason }) => [state, reason]), [["closed", "no_websocket"]])
    assert.deepEqual(errors.map(({ code }) => code), ["no_websocket"])
    assert.match(errors[0].cause.message, /WebSocket is not defined/)
    assert.equal(page.timers.size, 0)
    assert.equal(page.listening, 0)
  })
}

test("without a global WebSocket the console names it, by default", async (t) => {
  openPage(t)
  const written = t.mock.method(console, "error", () => {})
  delete globalThis.WebSocket
  new WebSocketManager("/ws/")
  await settled()

  assert.deepEqual(written.mock.calls.map((call) => call.arguments[1].code), ["no_websocket"])
})

test("a manager without a WebSocket can dial after one is set", async (t) => {
  const page = openPage(t)
  delete globalThis.WebSocket
  const { manager } = page.connect("/ws/", tokens())
  await settled()

  globalThis.WebSocket = FakeSocket
  manager.reconnect()
  await settled()
  page.socket.accept()

  assert.equal(manager.state, "open")
})

// React Native

/** The URL of React Native: it has no setters, and its getters were added over many versions. */
class ReactNativeURL {
  #url

  constructor(url) {
    this.#url = /[?#]|\/$/.test(url) ? url : `${url}/`
  }

  get href() {
    return this.#url
  }

  toString() {
    return this.#url
  }
}

for (const name of ["hash", "host", "hostname", "origin", "pathname", "port", "protocol", "search"]) {
  const get = () => {
    throw new Error(`URL.${name} is not implemented`)
  }
  Object.defineProperty(ReactNativeURL.prototype, name, { get })
}

/** A page without what React Native does not have. */
function openReactNative(t) {
  const { URL } = globalThis
  const page = openPage(t, { document: null })
  globalThis.URL = ReactNativeURL
  t.after(() => (globalThis.URL = URL))
  for (const name of ["location", "addEventListener", "removeEventListener"]) delete globalThis[name]
  return page
}

const addresses = [
  ["wss://example.com/ws/chat/", null, "wss://example.com/ws/chat/"],
  ["wss://example.com/ws/chat/", "wst_a", "wss://example.com/ws/chat/wst_a"],
  ["wss://example.com/ws/chat", "wst_a", "wss://example.com/ws/chat/wst_a"],
  ["https://example.com/ws/?room=1", "a$&b", "wss://example.com/ws/a%24%26b?room=1"],
]

for (const [path, token, url] of addresses) {
  test(`in React Native, path ${path} with token ${JSON.stringify(token)} dials ${url}`, (t) => {
    const page = openReactNative(t)
    const { manager } = page.connect(path, token)

    assert.deepEqual(page.sockets.map((socket) => socket.url), [url])
    page.socket.accept()
    page.tick(100)
    assert.equal(manager.state, "open")
  })
}

test("in React Native the endpoint gets the path of the URL", async (t) => {
  const page = openReactNative(t)
  const requests = fakeEndpoint(t, { body: { token: "wst_a" } })
  page.connect("wss://example.com/ws//chat/?next=//other/a", null, { tokenURL: "https://example.com/token/" })
  await settled()

  assert.deepEqual(requests.map(({ body }) => body), [{ path: "/ws//chat/", url: "https://example.com/token/" }])
  assert.equal(page.socket.url, "wss://example.com/ws//chat/wst_a?next=//other/a")
})

for (const [name, open] of [
  ["React Native", openReactNative],
  ["a worker", (t) => openPage(t, { document: null })],
]) {
  test(`in ${name}, a subscription gets what was published while the connection was lost`, async (t) => {
    const page = open(t)
    const server = new TopicServer({ "orders/1": 100 })
    const { manager } = page.connect("wss://example.com/ws/")
    const log = []
    const subscription = manager.subscribe("orders/1", (data, { offset }) => log.push(offset))
    subscription.on("state", ({ state, reason }) => log.push(reason ?? state))
    await server.flow(page)
    server.publish("orders/1")
    await server.flow(page)
    page.socket.drop()
    server.publish("orders/1")
    await page.pass(20000)
    await server.flow(page)
    manager.close()

    assert.deepEqual(log, ["live", 1, "disconnected", 2, "live", "disconnected"])
    assert.equal(page.timers.size, 0)
    assert.equal(page.listening, 0)
  })
}

// Its fetch() follows redirects, and its answers have no `redirected`.
const tokenURL = "https://example.com/token/"
const login = { redirected: undefined, url: "https://example.com/login/?next=/token/" }
const stays = { redirected: undefined, url: tokenURL }
for (const [name, answer, reason] of [
  ["a redirect to a login page", { ...login, body: "<form>", headers: { "Content-Type": "text/html" } }, "signed_out"],
  ["a redirect to a login in JSON", { ...login, body: { login: true } }, "signed_out"],
  ["a redirect to a login that forbids POST", { ...login, status: 405 }, "signed_out"],
  ["a redirect to a login that demands a CSRF token", { ...login, status: 403 }, "signed_out"],
  ["a redirect, with a fetch() that reports it", { ...login, redirected: true, status: 404 }, "signed_out"],
  ["a redirect to a failing server", { ...login, status: 502 }, "token_failed"],
  ["a token after a redirect", { ...login, body: { token: "wst_a" } }, "start"],
  ["404 without a redirect", { ...stays, status: 404 }, "token_failed"],
  ["404 from a fetch() without URLs", { redirected: undefined, url: "", status: 404 }, "token_failed"],
]) {
  test(`in React Native, ${name} leads to ${reason}`, async (t) => {
    const page = openReactNative(t)
    fakeEndpoint(t, answer)
    const manager = new WebSocketManager("wss://example.com/ws/", null, { tokenURL, logger: false })
    const reasons = []
    manager.on("state", ({ reason }) => reasons.push(reason))
    await settled()

    assert.equal(reasons.at(-1) ?? "start", reason)
    assert.equal(page.sockets.length, reason === "start" ? 1 : 0)
  })
}

test("in React Native a path without a host throws a TypeError", (t) => {
  openReactNative(t)

  assert.throws(() => WebSocketManager("/ws/"), { name: "TypeError", message: /full wss: URL/ })
})

// Electron

test("in a page of Electron with node integration the script defines the global and the module", async () => {
  const window = { module: { exports: {} } }
  runInNewContext(await readFile(script, "utf8"), window)

  assert.equal(typeof window.WebSocketManager, "function")
  assert.equal(window.module.exports, window.WebSocketManager)
})
