import { createRequire } from "node:module"

export const root = new URL("../../", import.meta.url)
export const script = new URL("channels_websocket_utils/static/websocket_utils/WebSocketManager.js", root)
export const WebSocketManager = createRequire(import.meta.url)(script.pathname)

/** A WebSocket whose server is the test. */
export class FakeSocket {
  static all = []

  constructor(url) {
    this.url = url
    this.readyState = 0
    this.frames = []
    FakeSocket.all.push(this)
  }

  send(frame) {
    if (this.readyState === 0) throw new Error("InvalidStateError")
    if (this.readyState === 1) this.frames.push(JSON.parse(frame))
  }

  close() {
    if (this.readyState < 2) this.readyState = 2
  }

  accept() {
    this.readyState = 1
    this.onopen?.({})
  }

  push(frame) {
    this.onmessage?.({ data: JSON.stringify(frame) })
  }

  drop(code = 1006) {
    this.readyState = 3
    this.onclose?.({ code })
  }
}

/** Let every promise that can settle settle. */
export const settled = () => new Promise((done) => setImmediate(done))

/**
 * A page with a virtual clock. Math.random() is 0.5, so the waits are 1,700 ms, 2,300 ms, 3,140 ms...
 *
 * `timers` holds what is still to fire; `connect()` returns a manager with what it has told.
 */
export function openPage(t, { href = "https://example.com/app/page?x=1", document } = {}) {
  FakeSocket.all = []
  t.mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 })
  t.mock.method(Math, "random", () => 0.5)
  const timers = new Set()
  const { setTimeout: set, clearTimeout: clear } = globalThis
  globalThis.setTimeout = (callback, delay, ...rest) => {
    const timer = set(() => {
      timers.delete(timer)
      callback(...rest)
    }, delay)
    timers.add(timer)
    return timer
  }
  globalThis.clearTimeout = (timer) => {
    timers.delete(timer)
    clear(timer)
  }
  globalThis.WebSocket = FakeSocket
  globalThis.location = { href }
  globalThis.document = document
  t.after(() => {
    t.mock.timers.reset()
    for (const name of ["WebSocket", "location", "document"]) delete globalThis[name]
  })

  return {
    timers,
    FakeSocket,
    sockets: FakeSocket.all,
    get socket() {
      return FakeSocket.all.at(-1)
    },
    async pass(ms) {
      t.mock.timers.tick(ms)
      await settled()
    },
    connect(path = "/ws/chat/", token = null, options = {}) {
      const manager = new WebSocketManager(path, token, options)
      const states = []
      const errors = []
      manager.on("state", (event) => states.push(event))
      manager.on("error", (error) => errors.push(error))
      return { manager, states, errors, codes: () => errors.map(({ code }) => code) }
    },
  }
}

/** A fetch() that gives `answers` in turn, each {status, body, headers} or an Error to throw. */
export function fakeEndpoint(t, ...answers) {
  const requests = []
  t.mock.method(globalThis, "fetch", async (url, init) => {
    requests.push({ url, ...init, body: JSON.parse(init.body) })
    const answer = answers.length > 1 ? answers.shift() : answers[0]
    if (answer instanceof Error) throw answer
    const { status = 200, body = {}, headers = {} } = answer
    return new Response(typeof body === "string" ? body : JSON.stringify(body), { status, headers })
  })
  return requests
}

/** A token function that numbers its tokens, and counts how often it was asked. */
export function tokens(identity) {
  const ask = (question) => {
    ask.questions.push(question)
    const token = `token-${ask.questions.length}`
    return identity ? { token, identity: typeof identity === "function" ? identity() : identity } : token
  }
  ask.questions = []
  return ask
}
