import { createContext, runInContext } from "node:vm"

import { Clock } from "./clock.mjs"
import { Network } from "./network.mjs"
import { Target } from "./target.mjs"

const SHARED = {
  AbortController,
  AbortSignal,
  Blob,
  DOMException,
  Event,
  EventTarget,
  MessageEvent,
  TextDecoder,
  TextEncoder,
  URL,
  URLSearchParams,
  btoa,
  queueMicrotask,
}
// A client that warns must not fill the terminal of whoever measures it.
const SILENT = { log() {}, info() {}, debug() {}, warn() {}, error() {} }

/** A page of its own for one client: its globals, its clock, its network, its seeded Math.random(). */
export class Page {
  clock = new Clock()
  tokensAsked = 0
  /** What becomes of the calls for a token: "given", "failing" or "hanging". */
  tokens = "given"
  #window
  #document
  #globals

  constructor({ script, open, serve }, { seed = 1, mode = "up" } = {}) {
    this.network = new Network(this.clock, serve)
    this.network.mode = mode
    this.#window = new Target(guard)
    this.#document = Object.assign(new Target(guard), { visibilityState: "visible", hidden: false, cookie: "" })
    const globals = (this.#globals = createContext({
      ...SHARED,
      ...this.clock.globals(guard),
      console: SILENT,
      WebSocket: this.network.socketClass(guard),
      document: this.#document,
      navigator: { onLine: true, userAgent: "" },
      location: new URL("https://example.com/app/"),
      addEventListener: (...args) => this.#window.addEventListener(...args),
      removeEventListener: (...args) => this.#window.removeEventListener(...args),
    }))
    globals.window = globals.self = globals
    runInContext("Math", globals).random = random(seed)
    script.runInContext(globals)
    /** What the page's own code holds of the client: send() and close(). */
    this.user = open(globals.client, this)
  }

  /** What the page's scripts see. */
  get globals() {
    return this.#globals
  }

  /** How many listeners the client has on window and document. */
  get listening() {
    return this.#window.listening + this.#document.listening
  }

  /** What the page gives a client that asks for a token. */
  token = () => {
    this.tokensAsked++
    if (this.tokens === "failing") throw new Error("No token")
    return this.tokens === "hanging" ? new Promise(() => {}) : `token-${this.tokensAsked}`
  }

  /** The page goes to the background, and may be frozen there. */
  hide({ frozen = false } = {}) {
    this.#show("hidden")
    if (frozen) this.#document.emit("freeze")
  }

  /** The page is looked at again. */
  wake({ frozen = false } = {}) {
    if (frozen) this.#document.emit("resume")
    this.#show("visible")
    this.#window.emit("focus")
  }

  goOffline() {
    this.#globals.navigator.onLine = false
    this.#window.emit("offline")
  }

  goOnline() {
    this.#globals.navigator.onLine = true
    this.#window.emit("online")
  }

  /** Everything that a browser may say when a page comes back, in one moment. */
  wakeInEveryWay() {
    this.goOnline()
    this.wake({ frozen: true })
    this.#window.emit("pageshow", { persisted: true })
  }

  #show(visibilityState) {
    Object.assign(this.#document, { visibilityState, hidden: visibilityState === "hidden" })
    this.#document.emit("visibilitychange")
    this.#window.emit("visibilitychange")
  }
}

// A browser reports what a handler or a timer throws, and goes on.
function guard(callback, ...args) {
  try {
    callback(...args)
  } catch {}
}

// mulberry32
function random(seed) {
  let state = Math.imul(seed, 0x9e3779b9)
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
