/* The code of docs/howto_frameworks.rst, in React and Vue, with a document of jsdom and a network of the test. */

import assert from "node:assert/strict"
import { mkdir, mkdtemp, readFile, realpath, rm, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { after, afterEach, beforeEach, test } from "node:test"
import { fileURLToPath, pathToFileURL } from "node:url"

import { build } from "esbuild"
import { JSDOM } from "jsdom"
import { compileScript, parse } from "vue/compiler-sfc"

import { FakeSocket, root, settled } from "./support.mjs"

const page = await readFile(new URL("docs/howto_frameworks.rst", root), "utf8")
const files = [...page.matchAll(/``(src\/[\w.]+)``[^`]*?:\n\n\.\. code-block:: (?:\w+)\n\n((?: {4}.*\n|\n)+)/g)]
  .map(([, name, code]) => [name, code.replaceAll(/^ {4}/gm, "")])
const [connection, reactHooks, reactComponent, topicHook, topicComponent, vueHooks, vueComponent, ownManager] = files

const REACT = `
import { StrictMode } from "react"
import { createRoot } from "react-dom/client"
import { flushSync } from "react-dom"
import { SHOWN } from "FROM"

const root = createRoot(document.getElementById("app"))
flushSync(() => root.render(<StrictMode><SHOWN /></StrictMode>))
export const unmount = () => flushSync(() => root.unmount())
`
const ROOM = `
import { useManager } from "./useManager.js"

export const Room = () => <p id="state">{useManager("/ws/room/7/")?.state}</p>
`
const VUE = `
import { createApp } from "vue"
import News from "./News.vue"

const app = createApp(News)
app.mount("#app")
export const unmount = () => app.unmount()
`
const VUE_FLAGS = {
  __VUE_OPTIONS_API__: "false",
  __VUE_PROD_DEVTOOLS__: "false",
  __VUE_PROD_HYDRATION_MISMATCH_DETAILS__: "false",
}
const toVue = {
  name: "vue",
  setup: ({ onLoad }) =>
    onLoad({ filter: /\.vue$/ }, async ({ path }) => {
      const { descriptor } = parse(await readFile(path, "utf8"))
      return { contents: compileScript(descriptor, { id: "news", inlineTemplate: true }).content, loader: "js" }
    }),
}

const folder = await mkdtemp(join(await realpath(tmpdir()), "frameworks-"))
after(() => rm(folder, { recursive: true, force: true }))
await symlink(fileURLToPath(new URL("node_modules", root)), join(folder, "node_modules"))

let unmount
let requests

beforeEach(() => {
  const { window } = new JSDOM("<div id=app></div>", { url: "https://example.com/" })
  requests = []
  FakeSocket.all.length = 0
  // The endpoint answers when the test calls `answer`.
  const fetch = (url, { signal }) =>
    new Promise((resolve, reject) => {
      signal?.addEventListener("abort", () => reject(new Error("aborted")))
      const body = { token: `wst_${requests.length}`, identity: "ada" }
      const headers = { get: () => "application/json" }
      const answer = { ok: true, status: 200, url: `https://example.com${url}`, headers, json: async () => body }
      requests.push({ signal, answer: () => resolve(answer) })
    })
  const { document, location, Node, Element, HTMLElement, SVGElement, MutationObserver } = window
  const listening = {
    addEventListener: window.addEventListener.bind(window),
    removeEventListener: window.removeEventListener.bind(window),
  }
  const dom = { window, document, location, Node, Element, HTMLElement, SVGElement, MutationObserver }
  globalThis.navigator ??= window.navigator
  Object.assign(globalThis, dom, listening, { fetch, WebSocket: FakeSocket })
})

afterEach(async () => {
  unmount?.()
  unmount = undefined
  await settled()
})

/** Bundle the files of the page with an entry for development, run it, and return what it exports. */
async function open(name, entry, sources) {
  const place = join(folder, name)
  for (const [file, code] of [...sources, ["src/main.jsx", entry]]) {
    await mkdir(join(place, "src"), { recursive: true })
    await writeFile(join(place, file), code)
  }
  await build({
    entryPoints: [join(place, "src/main.jsx")],
    outfile: join(place, "main.mjs"),
    bundle: true,
    format: "esm",
    jsx: "automatic",
    define: { "process.env.NODE_ENV": '"development"', ...VUE_FLAGS },
    alias: {
      "channels-websocket-utils": fileURLToPath(
        new URL("channels_websocket_utils/static/websocket_utils/WebSocketManager.mjs", root),
      ),
    },
    plugins: [toVue],
    logLevel: "error",
  })
  const opened = await import(pathToFileURL(join(place, "main.mjs")).href)
  unmount = opened.unmount
  await shows(() => requests.length)
}

/** Wait until `test` returns something true: React and Vue render in tasks of their own. */
async function shows(test) {
  for (let tasks = 0; !test(); tasks++) {
    assert.ok(tasks < 1000, document.body.innerHTML)
    await settled()
  }
}

const text = (id) => document.getElementById(id)?.textContent

async function answered() {
  requests.filter(({ signal }) => !signal?.aborted).forEach(({ answer }) => answer())
  await shows(() => FakeSocket.all.length)
  await settled()
}

async function works() {
  await answered()
  assert.equal(FakeSocket.all.length, 1)
  const [socket] = FakeSocket.all
  assert.equal(socket.url, "wss://example.com/ws/chat/wst_0")
  socket.accept()
  await shows(() => text("state") === "open")

  socket.push({ key: "news", text: "Milk" })
  await shows(() => document.querySelectorAll("li").length)
  document.querySelector("button").click()
  await shows(() => socket.sent.some(({ type }) => type === "greet"))
  const { reply_key: key } = socket.sent.find(({ type }) => type === "greet")
  socket.push({ key, text: "Hello ada" })
  await shows(() => text("reply") === "Hello ada")

  // One listener, although StrictMode has mounted the component twice.
  assert.deepEqual([...document.querySelectorAll("li")].map((item) => item.textContent), ["Milk"])
  assert.equal(requests.length, 1)
  return socket
}

const items = () => [...document.querySelectorAll("li")].map((item) => item.textContent)

/** Answer each subscribe and unsubscribe that the client has sent and that has no answer. */
async function answerTopics(socket) {
  for (const { type, reply_key: key, subscriptions } of socket.sent.splice(0)) {
    if (type === "websocket.unsubscribe") socket.push({ key, data: null })
    if (type !== "websocket.subscribe") continue
    const answers = subscriptions.map(({ topic }) => (
      { topic, epoch: "e1", offset: 0, recovered: false, messages: [] }
    ))
    socket.push({ key, data: { subscriptions: answers } })
  }
  await settled()
}

/** Open the connection, and deliver messages of the lobby: each is shown once, and none after a gap. */
async function showsLobby() {
  await answered()
  const [socket] = FakeSocket.all
  socket.accept()
  socket.push({ key: "websocket.ready", identity: "ada", topics: true })
  await settled()
  await answerTopics(socket)
  await answerTopics(socket)
  const message = (offset, text) => ({ key: "websocket.topic", topic: "rooms/lobby", offset, data: { text } })

  socket.push(message(1, "Hi"))
  socket.push(message(2, "Ho"))
  await shows(() => items().length === 2)
  assert.deepEqual(items(), ["Hi", "Ho"])

  socket.push({ key: "websocket.gap", topic: "rooms/lobby", epoch: "e2", offset: 5, reason: "epoch" })
  await shows(() => items().length === 0)
  return socket
}

test("the page's files are those that the tests run", () => {
  assert.deepEqual(files.map(([name]) => name), [
    "src/connection.js",
    "src/useConnection.js",
    "src/News.jsx",
    "src/useTopic.js",
    "src/Lobby.jsx",
    "src/useConnection.js",
    "src/News.vue",
    "src/useManager.js",
  ])
  assert.equal(page.match(/code-block::/g).length, files.length)
})

test("the modules with hooks and composables have about 20 lines", () => {
  for (const [name, code] of [connection, reactHooks, topicHook, vueHooks, ownManager]) {
    assert.ok(code.split("\n").filter((line) => line.trim()).length <= 20, name)
  }
})

test("a component of React opens one connection in StrictMode, receives pushes and calls", async () => {
  const entry = REACT.replaceAll("SHOWN", "News").replace("FROM", "./News.jsx")
  await open("react", entry, [connection, reactHooks, reactComponent])

  await works()
})

test("a component of React in StrictMode gets each message of a topic once, and unsubscribes", async () => {
  const entry = REACT.replaceAll("SHOWN", "Lobby").replace("FROM", "./Lobby.jsx")
  await open("lobby", entry, [connection, topicHook, topicComponent])

  const socket = await showsLobby()
  unmount()
  unmount = undefined
  await shows(() => socket.sent.some(({ type }) => type === "websocket.unsubscribe"))
})

test("a component of Vue gets each message of a topic once, and unsubscribes", async () => {
  await open("vue_lobby", VUE, [connection, vueHooks, vueComponent])

  const socket = await showsLobby()
  unmount()
  unmount = undefined
  await shows(() => socket.sent.some(({ type }) => type === "websocket.unsubscribe"))
})

test("a naive component of React opens two connections in StrictMode", async () => {
  const naive = `
import WebSocketManager from "channels-websocket-utils"
import { useMemo } from "react"

export function Naive() {
  const manager = useMemo(() => new WebSocketManager("/ws/chat/", null, { tokenURL: "/websocket/token/" }), [])
  return <p id="state">{manager.state}</p>
}
`
  const entry = REACT.replaceAll("SHOWN", "Naive").replace("FROM", "./Naive.jsx")
  await open("naive", entry, [["src/Naive.jsx", naive]])
  await shows(() => requests.length > 1)
  await answered()

  assert.equal(FakeSocket.all.length, 2)
})

test("a manager of one component of React opens one connection in StrictMode, and is closed with it", async () => {
  const entry = REACT.replaceAll("SHOWN", "Room").replace("FROM", "./Room.jsx")
  await open("room", entry, [ownManager, ["src/Room.jsx", ROOM]])
  await shows(() => requests.length === 2)
  await answered()

  assert.deepEqual(requests.map(({ signal }) => signal.aborted), [true, false])
  assert.deepEqual(FakeSocket.all.map(({ url }) => url), ["wss://example.com/ws/room/7/wst_1"])
  unmount()
  unmount = undefined
  await shows(() => FakeSocket.all[0].readyState >= 2)
})

test("a component of Vue opens one connection, receives pushes and calls", async () => {
  await open("vue", VUE, [connection, vueHooks, vueComponent])

  await works()
})

test("an unmounted component receives no pushes, and the connection of the page stays open", async () => {
  await open("unmounted", VUE, [connection, vueHooks, [
    vueComponent[0],
    vueComponent[1].replace("texts.value.push(text)", "(globalThis.received ??= []).push(text)"),
  ]])
  await answered()
  const [socket] = FakeSocket.all
  socket.accept()
  socket.push({ key: "news", text: "Milk" })
  unmount()
  unmount = undefined
  socket.push({ key: "news", text: "Bread" })

  assert.deepEqual(globalThis.received, ["Milk"])
  assert.equal(socket.readyState, 1)
})
