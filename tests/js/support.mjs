import { createRequire } from "node:module"

export const root = new URL("../../", import.meta.url)
export const script = new URL("channels_websocket_utils/static/websocket_utils/WebSocketManager.js", root)
export const WebSocketManager = createRequire(import.meta.url)(script.pathname)

/** Math.random() as it is outside of a page. */
export const { random } = Math

/** A WebSocket whose server is the test. */
export class FakeSocket {
  static all = []

  bufferedAmount = 0

  constructor(url, protocols = []) {
    this.url = url
    this.protocols = protocols
    this.dialledAt = Date.now()
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

/** A window or a document, as far as it has listeners. */
class Target {
  #listeners = new Map()

  get listening() {
    return [...this.#listeners.values()].reduce((sum, { size }) => sum + size, 0)
  }

  addEventListener = (type, listener) => {
    if (!this.#listeners.has(type)) this.#listeners.set(type, new Set())
    this.#listeners.get(type).add(listener)
  }

  removeEventListener = (type, listener) => this.#listeners.get(type)?.delete(listener)

  tell(type, facts) {
    for (const listener of [...(this.#listeners.get(type) ?? [])]) listener({ type, ...facts })
  }
}

/** Let every promise that can settle settle. */
export const settled = () => new Promise((done) => setImmediate(done))

/**
 * A page with a virtual clock. Its random() is 0.5, so the waits are 1,700 ms, 2,300 ms, 3,140 ms...
 *
 * `timers` holds what is still to fire; `connect()` returns a manager with what it has told. Without
 * a `document` (null) it is a worker.
 */
export function openPage(t, { href = "https://example.com/app/page?x=1", document = {} } = {}) {
  FakeSocket.all = []
  t.mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 })
  Math.random = () => page.random()
  const timers = new Map()
  const now = Date.now
  const { setTimeout: set, clearTimeout: clear } = globalThis
  globalThis.setTimeout = (callback, delay, ...rest) => {
    // As in a browser: whole milliseconds, and one that is too long fires at once.
    const wait = delay > 2147483647 ? 1 : Math.max(1, Math.trunc(delay) || 0)
    const timer = set(() => {
      timers.delete(timer)
      callback(...rest)
    }, wait)
    timers.set(timer, now() + wait)
    return timer
  }
  globalThis.clearTimeout = (timer) => {
    timers.delete(timer)
    clear(timer)
  }
  const window = new Target()
  const blank = { hidden: false, cookie: "", querySelector: () => null }
  const shown = document && Object.assign(new Target(), blank, document)
  const { addEventListener, removeEventListener } = window
  const globals = { WebSocket: FakeSocket, location: { href }, document: shown, addEventListener, removeEventListener }
  Object.assign(globalThis, globals)
  t.after(() => {
    Math.random = random
    t.mock.timers.reset()
    for (const name of Object.keys(globals)) delete globalThis[name]
  })

  /** Move the clock to the next timer, or to `end`; true if a timer has fired. */
  function step(end) {
    const due = Math.min(...timers.values())
    t.mock.timers.tick(Math.max(0, Math.min(due, end) - now()))
    return due <= end
  }

  const page = {
    random: () => 0.5,
    timers,
    window,
    document: shown,
    FakeSocket,
    sockets: FakeSocket.all,
    get socket() {
      return FakeSocket.all.at(-1)
    },
    /** How many listeners window and document have. */
    get listening() {
      return window.listening + (shown?.listening ?? 0)
    },
    /** Let `ms` go by, one timer after the other. */
    tick(ms) {
      const end = now() + ms
      while (step(end));
    },
    /** As tick(), and let promises settle after each timer. */
    async pass(ms) {
      const end = now() + ms
      do await settled()
      while (step(end))
      await settled()
    },
    /** The machine sleeps: the clock goes on and no timer fires. Those that are overdue fire next. */
    sleep(ms) {
      t.mock.timers.setTime(now() + ms)
    },
    /** Somebody sets the clock back; timers do not mind. */
    setBack(ms) {
      t.mock.method(Date, "now", () => now() - ms)
    },
    show(isVisible) {
      shown.hidden = !isVisible
      shown.tell("visibilitychange")
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
  return page
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
