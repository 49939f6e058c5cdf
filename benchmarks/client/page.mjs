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
// Warnings of the clients are not printed.
const SILENT = { log() {}, info() {}, debug() {}, warn() {}, error() {} }

/** The page of one client: its globals, clock, network and seeded Math.random(). */
export class Page {
  clock = new Clock()
  tokensAsked = 0
  /** The result of requests for a token: "given", "failing" or "hanging". */
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
    /** The page's interface to the client: send() and close(). */
    this.user = open(globals.client, this)
  }

  /** The globals of the page's scripts. */
  get globals() {
    return this.#globals
  }

  /** The number of listeners of the client on window and document. */
  get listening() {
    return this.#window.listening + this.#document.listening
  }

  /** Answer the client's request for a token. */
  token = () => {
    this.tokensAsked++
    if (this.tokens === "failing") throw new Error("No token")
    return this.tokens === "hanging" ? new Promise(() => {}) : `token-${this.tokensAsked}`
  }

  /** Move the page to the background, and freeze it if requested. */
  hide({ frozen = false } = {}) {
    this.#show("hidden")
    if (frozen) this.#document.emit("freeze")
  }

  /** Show the page again. */
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

  /** Dispatch all events of a page that becomes visible again, at once. */
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

// A browser reports exceptions of handlers and timers, and continues.
function guard(callback, ...args) {
  try {
    callback(...args)
  } catch {}
}

/** Return a random number generator that repeats its numbers for the same seed (mulberry32). */
export function random(seed) {
  let state = Math.imul(seed, 0x9e3779b9)
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
