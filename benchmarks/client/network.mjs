import { Target } from "./target.mjs"

const TRIP = 10 // ms from the page to the server and back
const GREETING = 100 // ms in which both sides can say their first words
const CLOSING_LIMIT = 60_000 // ms that a browser waits for the other side to agree to a close

const [CONNECTING, OPEN, CLOSING, CLOSED] = [0, 1, 2, 3]

/**
 * The simulated network between one page and its server, and the server.
 *
 * `mode` is the result of a connection attempt: "up" (accepted), "down" (refused), "hanging" (no answer),
 * "dropping" (accepted and closed at once) or "greeting" (accepted, sent a first message and then closed).
 */
export class Network {
  mode = "up"
  sockets = []
  /** The number of the application's messages that have reached the server. */
  arrived = 0
  /** The time at which the client gave up a socket whose link was cut, or reconnected. */
  noticedAt = null
  #wasCut = false
  #clock
  #serve

  constructor(clock, serve) {
    this.#clock = clock
    this.#serve = serve
  }

  get dials() {
    return this.sockets.map(({ dialledAt }) => dialledAt)
  }

  /** The sockets that are neither closed nor closing. */
  get held() {
    return this.sockets.filter(({ readyState }) => readyState < CLOSING)
  }

  /** Whether the client is connected and authenticated. */
  get isUp() {
    return this.held.some(({ readyState, tokens }) => readyState === OPEN && tokens.size)
  }

  /** Stop the server, and close every socket. */
  drop() {
    this.mode = "down"
    for (const socket of this.held) this.#end(socket)
  }

  /** Drop all later data of the present sockets, without an error. */
  cut() {
    this.#wasCut = true
    for (const socket of this.held) socket.isCut = true
  }

  /** The page's WebSocket class. `guard` runs the client's handlers. */
  socketClass(guard) {
    const network = this
    return class WebSocket extends Target {
      static CONNECTING = CONNECTING
      static OPEN = OPEN
      static CLOSING = CLOSING
      static CLOSED = CLOSED
      readyState = CONNECTING
      binaryType = "blob"
      bufferedAmount = 0
      extensions = ""
      tokens = new Set()

      constructor(url, protocols = []) {
        super(guard)
        this.url = `${url}`
        this.protocol = [protocols].flat()[0] ?? ""
        network.#dialled(this)
      }

      send(text) {
        if (this.readyState === CONNECTING) throw new DOMException("Still connecting", "InvalidStateError")
        if (this.readyState === OPEN && !this.isCut) network.#handle(this, text)
      }

      close(code = 1005) {
        if (this.readyState < CLOSING) network.#closed(this, code)
      }
    }
  }

  #dialled(socket) {
    const { mode } = this
    socket.dialledAt = this.#clock.now
    note(socket, socket.url)
    if (this.#wasCut) this.#noticed()
    this.sockets.push(socket)
    if (mode === "hanging") return
    this.#clock.after(TRIP, () => socket.readyState === CONNECTING && this.#answer(socket, mode))
  }

  #answer(socket, mode) {
    if (mode === "down") return this.#end(socket, { failed: true })
    socket.readyState = OPEN
    socket.openedAt = this.#clock.now
    if (mode !== "dropping") this.#greet(socket)
    socket.emit("open")
    if (mode !== "up") this.#clock.after(mode === "dropping" ? 0 : GREETING, () => this.#end(socket))
  }

  #greet(socket) {
    const whileOpen = (callback) => () => socket.readyState === OPEN && !socket.isCut && callback()
    const timers = []
    const after = (ms, callback, options) => timers.push(this.#clock.after(ms, whileOpen(callback), options))
    socket.release = () => timers.forEach((timer) => this.#clock.cancel(timer))
    socket.connection = {
      url: socket.url,
      say: (data) => after(TRIP, () => socket.emit("message", { data })),
      after,
      every: (ms, callback) => after(ms, callback, { every: ms }),
      close: () => this.#end(socket),
      /** The server may replace it: the connection is closed, and the server can notice. */
      closed() {},
    }
    socket.handle = this.#serve(socket.connection)
  }

  #handle(socket, text) {
    note(socket, text)
    if (text.includes("figure")) this.arrived++
    else socket.handle?.(text)
  }

  #closed(socket, code) {
    const failed = socket.readyState === CONNECTING
    const { isCut } = socket
    if (isCut) this.#noticed()
    socket.readyState = CLOSING
    const wait = isCut ? CLOSING_LIMIT : failed ? 0 : TRIP
    this.#clock.after(wait, () => this.#end(socket, { failed, code: isCut || failed ? 1006 : code }))
  }

  #noticed() {
    this.noticedAt ??= this.#clock.now
  }

  // A failed attempt is an error and then a close. A lost connection is only a close.
  #end(socket, { failed, code = 1006 } = {}) {
    if (socket.readyState === CLOSED) return
    socket.release?.()
    if (!socket.isCut) socket.connection?.closed()
    socket.readyState = CLOSED
    socket.endedAt = this.#clock.now
    if (failed) socket.emit("error")
    socket.emit("close", { code, reason: "", wasClean: code !== 1006 })
  }
}

function note(socket, text) {
  for (const [token] of text.matchAll(/token-\d+/g)) socket.tokens.add(token)
}
