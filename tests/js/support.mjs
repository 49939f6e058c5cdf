import assert from "node:assert/strict"
import { readFile } from "node:fs/promises"
import { createRequire } from "node:module"

export const root = new URL("../../", import.meta.url)
export const script = new URL("channels_websocket_utils/static/websocket_utils/WebSocketManager.js", root)
export const WebSocketManager = createRequire(import.meta.url)(script.pathname)

/** The original Math.random(). */
export const { random } = Math

/** The transitions of a manager that its documentation allows, as "from -> to". */
export const TRANSITIONS = await (async () => {
  const page = await readFile(new URL("docs/client_internals.rst", root), "utf8")
  const [, rows] = /^state +meaning.*\n=+[ =]+\n([\s\S]*?)^=/m.exec(page)
  const transitions = []
  let from
  for (const line of rows.trimEnd().split("\n")) {
    from = /^``([\w.]+)``/.exec(line)?.[1] ?? from
    const last = line.split(/ {2,}/).at(-1)
    if (/^(``[\w.]+``,? ?)+$/.test(last)) {
      transitions.push(...[...last.matchAll(/``([\w.]+)``/g)].map(([, to]) => `${from} -> ${to}`))
    }
  }
  return transitions
})()

/** A list that receives the next transitions of `manager`. One that is not documented throws and changes nothing. */
export function watchStates({ _manager: inside }) {
  const made = []
  let { state } = inside
  Object.defineProperty(inside, "state", {
    configurable: true,
    get: () => state,
    set(next) {
      const transition = `${state} -> ${next}`
      assert.ok(TRANSITIONS.includes(transition), transition)
      made.push(transition)
      state = next
    },
  })
  return made
}

/** A WebSocket without a network. The test is its server. */
export class FakeSocket {
  static all = []

  bufferedAmount = 0

  constructor(url, protocols = []) {
    this.url = url
    this.protocols = protocols
    this.dialledAt = Date.now()
    this.readyState = 0
    this.sent = []
    FakeSocket.all.push(this)
  }

  send(text) {
    if (this.readyState === 0) throw new Error("InvalidStateError")
    if (this.readyState === 1) this.sent.push(JSON.parse(text))
  }

  close() {
    if (this.readyState < 2) this.readyState = 2
  }

  accept() {
    this.readyState = 1
    this.onopen?.({})
  }

  push(message) {
    this.onmessage?.({ data: JSON.stringify(message) })
  }

  fail() {
    this.onerror?.({})
  }

  drop(code = 1006) {
    this.readyState = 3
    this.onclose?.({ code })
  }
}

/** The listeners of a window or a document. */
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

  dispatch(type, properties) {
    for (const listener of [...(this.#listeners.get(type) ?? [])]) listener({ type, ...properties })
  }
}

/** Wait until all promises that can settle have settled. */
export const settled = () => new Promise((done) => setImmediate(done))

/**
 * A page with a virtual clock. Its random() is 0.5, so the waits are 1,700 ms, 2,300 ms, 3,140 ms...
 *
 * `timers` contains the pending timers. `connect()` returns a manager with its states and errors, and checks each
 * transition of its state. With the `document` null it is a worker.
 */
export function openPage(t, { href = "https://example.com/app/page?x=1", document = {} } = {}) {
  FakeSocket.all = []
  t.mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 })
  Math.random = () => page.random()
  const timers = new Map()
  const now = Date.now
  const { setTimeout: set, clearTimeout: clear } = globalThis
  globalThis.setTimeout = (callback, delay, ...rest) => {
    // As in a browser: whole milliseconds, and a timer that is too long fires at once.
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
    /** The number of listeners of window and document. */
    get listening() {
      return window.listening + (shown?.listening ?? 0)
    },
    /** Move the clock by `ms`, one timer after the other. */
    tick(ms) {
      const end = now() + ms
      while (step(end));
    },
    /** Like tick(), but wait for promises after each timer. */
    async pass(ms) {
      const end = now() + ms
      do await settled()
      while (step(end))
      await settled()
    },
    /** The machine sleeps: the clock moves and no timer fires. Overdue timers fire afterwards. */
    sleep(ms) {
      t.mock.timers.setTime(now() + ms)
    },
    /** Set the clock back. Timers are not affected. */
    setBack(ms) {
      t.mock.method(Date, "now", () => now() - ms)
    },
    show(isVisible) {
      shown.hidden = !isVisible
      shown.dispatch("visibilitychange")
    },
    connect(path = "/ws/chat/", token = null, options = {}) {
      const manager = new WebSocketManager(path, token, options)
      watchStates(manager)
      const states = []
      const errors = []
      manager.on("state", (event) => states.push(event))
      manager.on("error", (error) => errors.push(error))
      return { manager, states, errors, codes: () => errors.map(({ code }) => code) }
    },
  }
  return page
}

/** A document with one element of these data-* attributes, by default a script, after `others`. */
export function holding(dataset, tag = "script", ...others) {
  const elements = [...others, { tag, dataset }]
  const matches = ({ tag, dataset }, selector) => {
    const [, name, attribute] = /^(\w*)\[data-([\w-]+)\]$/.exec(selector)
    const key = attribute.replace(/-(\w)/g, (_, letter) => letter.toUpperCase())
    return (!name || name === tag) && key in dataset
  }
  const querySelector = (selectors) =>
    elements.find((element) => selectors.split(",").some((selector) => matches(element, selector))) ?? null
  return { querySelector }
}

/** Mock fetch(): it gives `answers` in turn, each {status, body, headers, redirected, url} or an Error to throw. */
export function fakeEndpoint(t, ...answers) {
  const requests = []
  t.mock.method(globalThis, "fetch", async (url, init) => {
    requests.push({ url, ...init, body: JSON.parse(init.body) })
    const answer = answers.length > 1 ? answers.shift() : answers[0]
    if (answer instanceof Error) throw answer
    const { status = 200, body = {}, headers = {}, ...moved } = answer
    // A browser shows a redirect that it does not follow as an answer with the status 0.
    if (status === 0) return Response.error()
    const response = new Response(typeof body === "string" || !body ? body : JSON.stringify(body), { status, headers })
    for (const name in moved) Object.defineProperty(response, name, { value: moved[name] })
    return response
  })
  return requests
}

/** A token function that numbers its tokens and keeps its arguments in `questions`. */
export function tokens(identity) {
  const ask = (question) => {
    ask.questions.push(question)
    const token = `token-${ask.questions.length}`
    return identity ? { token, identity: typeof identity === "function" ? identity() : identity } : token
  }
  ask.questions = []
  return ask
}
