import { EventEmitter } from "node:events"
import { createRequire } from "node:module"
import { createContext, Script } from "node:vm"

import { build } from "esbuild"

const here = new URL(".", import.meta.url)
const require = createRequire(import.meta.url)

const PING_INTERVAL = 25_000 // the defaults of the server
const PING_TIMEOUT = 20_000
const OPEN = { upgrades: [], pingInterval: PING_INTERVAL, pingTimeout: PING_TIMEOUT, maxPayload: 1_000_000 }

const { outputFiles } = await build({
  stdin: { contents: 'export { Server } from "socket.io"', resolveDir: here.pathname },
  bundle: true,
  write: false,
  platform: "node",
  format: "cjs",
  logLevel: "silent",
})
const script = new Script(outputFiles[0].text)

/** One connection of the server's engine, over the simulated network. */
class Connection extends EventEmitter {
  protocol = 4
  readyState = "open"
  request = { headers: {}, url: "/socket.io/", connection: {}, _query: {} }
  transport = { name: "websocket", writable: true }

  constructor(clock, connection, id) {
    super()
    this.clock = clock
    this.connection = connection
    this.id = id
    connection.say(`0${JSON.stringify({ sid: id, ...OPEN })}`)
    connection.closed = () => this.end("transport close")
    this.expect()
  }

  /** Send a ping after some time. The client must answer it. */
  expect() {
    this.clock.cancel(this.timer)
    const ping = () => {
      this.connection.say("2")
      this.timer = this.clock.after(PING_TIMEOUT, () => this.end("ping timeout"))
    }
    this.timer = this.clock.after(PING_INTERVAL, ping)
  }

  handle(text) {
    if (text === "3") this.expect()
    if (text.startsWith("4")) this.emit("data", text.slice(1))
  }

  write(packet) {
    this.connection.say(`4${packet}`)
  }

  close() {
    this.end("forced close")
    this.connection.close()
  }

  end(reason) {
    if (this.readyState === "closed") return
    this.readyState = "closed"
    this.clock.cancel(this.timer)
    this.emit("close", reason)
  }
}

/** The globals of a process with the simulated clock. Its timers have the methods of Node's. */
function globalsOf(clock) {
  const globals = clock.globals((callback, ...args) => callback(...args), { client: false })
  const withUnref = (set) => (...args) => {
    const timer = { id: set(...args), unref: () => timer, ref: () => timer, refresh: () => timer }
    return timer
  }
  const clear = (timer) => clock.cancel(timer?.id)
  return {
    ...globals,
    setTimeout: withUnref(globals.setTimeout),
    setInterval: withUnref(globals.setInterval),
    clearTimeout: clear,
    clearInterval: clear,
  }
}

/** Start the server of socket.io with its connection state recovery. Only its transport is simulated. */
export function startSocketIO(clock) {
  let server
  let engine
  let count = 0

  function start() {
    const module = { exports: {} }
    const { URL, Buffer, TextDecoder, TextEncoder, process, queueMicrotask } = globalThis
    const common = { URL, Buffer, TextDecoder, TextEncoder, process, queueMicrotask, console, require, module }
    const context = createContext({ ...common, exports: module.exports, ...globalsOf(clock) })
    context.globalThis = context.global = context
    script.runInContext(context)
    server = new module.exports.Server(undefined, { connectionStateRecovery: {} })
    engine = new EventEmitter()
    server.bind(engine)
  }

  start()
  return {
    serve(connection) {
      const made = new Connection(clock, connection, `c${++count}`)
      engine.emit("connection", made)
      return (text) => made.handle(text)
    },
    publish: (number) => server.emit("number", number),
    restart(keeps) {
      if (!keeps) start()
      return !keeps
    },
  }
}
