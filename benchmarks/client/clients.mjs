import { readFile } from "node:fs/promises"
import { Script } from "node:vm"
import { gzipSync } from "node:zlib"

import { build } from "esbuild"

// The time to send the kept messages grows with the square of their number.
const PHOENIX_CHANNELS = 50

/*
 * The clients, each used as in its documentation and with its default settings.
 *
 * `entry` is the module that a site imports. `open(exports, page)` creates a client and returns two
 * functions: `send(refused)` sends a message, and the client calls `refused` if it cannot deliver it;
 * `close()` closes the client permanently. `serve(connection)` sends the minimum that its server must
 * send, and returns the handler of the client's messages.
 */

const here = new URL(".", import.meta.url)
const root = new URL("../../", here)

export const ours = {
  name: "ours",
  folder: root,
  entry: 'export { default } from "./channels_websocket_utils/static/websocket_utils/WebSocketManager.mjs"',
  open({ default: WebSocketManager }, { token }) {
    const manager = new WebSocketManager("/ws/", async () => token())
    return {
      send(refused) {
        try {
          manager.sendJSON({ type: "figure" })
        } catch {
          refused()
        }
      },
      close: () => manager.close(),
    }
  },
  serve({ say }) {
    say('{"key": "websocket.ready", "identity": "x"}')
    return (text) => JSON.parse(text).type === "websocket.ping" && say('{"key": "websocket.pong"}')
  },
}

const phoenix = {
  name: "phoenix",
  entry: 'export { Socket } from "phoenix"',
  open({ Socket }, { token }) {
    const socket = new Socket("/socket", { params: () => ({ token: token() }) })
    socket.connect()
    const channels = []
    let sent = 0
    function channel(index) {
      if (channels[index]) return channels[index]
      channels[index] = socket.channel(`room:${index}`, {})
      channels[index].join()
      return channels[index]
    }
    channel(0)
    return {
      send: (refused) =>
        channel(sent++ % PHOENIX_CHANNELS).push("figure", {}).receive("error", refused).receive("timeout", refused),
      close: () => socket.disconnect(),
    }
  },
  serve: ({ say }) => (text) => {
    const [joinRef, ref, topic] = JSON.parse(text)
    say(JSON.stringify([joinRef, ref, topic, "phx_reply", { status: "ok", response: {} }]))
  },
}

const socketIO = {
  name: "socket.io-client",
  entry: 'export { io } from "socket.io-client"',
  open({ io }, { token }) {
    const socket = io({ transports: ["websocket"], auth: async (give) => give({ token: await token() }) })
    return { send: () => socket.emit("figure"), close: () => socket.disconnect() }
  },
  serve({ say, after, every, close }) {
    let isIn = false
    say('0{"sid":"a","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}')
    every(25_000, () => say("2"))
    after(45_000, () => isIn || close())
    return (text) => {
      if (!text.startsWith("40")) return
      isIn = true
      say('40{"sid":"b"}')
    }
  },
}

const graphqlWS = {
  name: "graphql-ws",
  entry: 'export { createClient } from "graphql-ws"',
  open({ createClient }, { token }, more) {
    const client = createClient({
      url: "wss://example.com/graphql",
      connectionParams: async () => ({ token: await token() }),
      // By default it connects only for a subscription, and does not retry after a failure.
      lazy: false,
      retryAttempts: Infinity,
      shouldRetry: () => true,
      onNonLazyError() {},
      ...more?.(() => client),
    })
    const query = "mutation { figure }"
    return {
      send: (refused) => client.subscribe({ query }, { next() {}, complete() {}, error: refused }),
      close: () => client.dispose(),
    }
  },
  serve({ say }) {
    const answers = { connection_init: "connection_ack", ping: "pong" }
    return (text) => {
      const type = answers[JSON.parse(text).type]
      if (type) say(JSON.stringify({ type }))
    }
  },
}

/** graphql-ws with the recipe of its documentation for a server that does not answer pings. */
export const graphqlWSWithPings = {
  ...graphqlWS,
  open: (exports, page) =>
    graphqlWS.open(exports, page, (client) => {
      let timer
      return {
        keepAlive: 10_000,
        on: {
          ping: (received) => received || (timer = page.globals.setTimeout(() => client().terminate(), 5000)),
          pong: (received) => received && page.globals.clearTimeout(timer),
        },
      }
    }),
}

const socketLike = (name, entry) => ({
  name,
  entry,
  open({ default: ReconnectingWebSocket }, { token }) {
    const socket = new ReconnectingWebSocket(async () => `wss://example.com/ws/${await token()}`)
    return { send: () => socket.send("figure"), close: () => socket.close() }
  },
  serve: () => () => {},
})

export const peers = [
  phoenix,
  socketIO,
  graphqlWS,
  socketLike("reconnecting-websocket", 'export { default } from "reconnecting-websocket"'),
  socketLike("partysocket", 'export { default } from "partysocket/ws"'),
]

/** Return the client with its bundled script, its size in gzip bytes and its version. */
export async function load(client) {
  const folder = client.folder ?? here
  const [{ text: source }] = await bundle(client, { format: "iife", globalName: "client" })
  const [{ contents }] = await bundle(client, { format: "esm", minify: true })
  const manifest = client.folder ? "package.json" : `node_modules/${client.name}/package.json`
  const { version } = JSON.parse(await readFile(new URL(manifest, folder), "utf8"))
  return { ...client, script: new Script(source), bytes: gzipSync(contents, { level: 9 }).length, version }
}

async function bundle({ entry, folder = here }, options) {
  const { outputFiles } = await build({
    stdin: { contents: entry, resolveDir: folder.pathname },
    bundle: true,
    write: false,
    target: "es2020",
    legalComments: "none",
    logLevel: "silent",
    ...options,
  })
  return outputFiles
}
