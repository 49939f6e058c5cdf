// Clients that send requests all the time, for evidence/rolling.py. One JSON argument has the options.
// They start when all of them are open, end at the line "end" on stdin, and print the results. At each
// other line, which has an id and seconds, each of them sends a request that takes so long.
// node --experimental-websocket

import { createRequire } from "node:module"
import { createInterface } from "node:readline"

import { naive } from "../benchmarks/client/naive.mjs"

const require = createRequire(import.meta.url)
const WebSocketManager = require("../channels_websocket_utils/static/websocket_utils/WebSocketManager.js")

const { kind, port, sessions, csrfToken, every, seconds } = JSON.parse(process.argv[2])
const site = `127.0.0.1:${port}`
const dialled = new Map() // by URL, which ends with the token

// Send a browser's cookies, and count the tokens in handshakes. A session has one manager.
const { fetch, WebSocket } = globalThis
const cookieOf = (session) => `sessionid=${session}; csrftoken=${csrfToken}`
globalThis.fetch = (url, options) => {
  const [base, session] = url.split("#")
  return fetch(base, { ...options, headers: { ...options.headers, Cookie: cookieOf(session) } })
}
globalThis.WebSocket = class extends WebSocket {
  constructor(url) {
    const { pathname, searchParams } = new URL(url)
    dialled.set(pathname, (dialled.get(pathname) ?? 0) + 1)
    super(url.split("?")[0], { headers: { Cookie: cookieOf(searchParams.get("session")) } })
  }
}

const counts = { sent: 0, answered: 0, wrong: 0, failed: {}, gaps: [] }
const failed = [] // the ids
const settled = []

function connect(session) {
  const url = `ws://${site}/async/?session=${session}`
  const tokenURL = `http://${site}/websocket/token/#${session}`
  const Client = naive[kind] ?? WebSocketManager
  return new Client(url, null, { tokenURL, csrfToken })
}

function watch(manager) {
  let lostAt
  return new Promise((opened) => {
    manager.on("state", ({ state }) => {
      if (state !== "open") return (lostAt ??= performance.now())
      if (lostAt && counts.sent) counts.gaps.push((performance.now() - lostAt) / 1000)
      lostAt = null
      opened()
    })
  })
}

function send(manager, name, duration = seconds) {
  const id = `${name}.${++counts.sent}`
  const sent = manager.request({ type: "work", id, seconds: duration }).then(
    (answer) => counts[answer === id ? "answered" : "wrong"]++,
    ({ code }) => {
      counts.failed[code] = (counts.failed[code] ?? 0) + 1
      failed.push(id)
    },
  )
  settled.push(sent)
}

const managers = sessions.map(connect)
await Promise.all(managers.map(watch))
console.log("open")
// The clients send at different times.
const timers = managers.map((manager, number) => {
  const start = () => (timers[number] = setInterval(send, every, manager, number))
  return setTimeout(start, (every * number) / managers.length)
})
for await (const line of createInterface({ input: process.stdin })) {
  if (line === "end") break
  const [name, duration] = line.split(" ")
  managers.forEach((manager, number) => send(manager, `${name}.${number}`, Number(duration)))
}
timers.forEach(clearInterval)
// A manager lets no request wait for more than 10 s.
const limit = new Promise((done) => setTimeout(done, 12_000))
await Promise.race([Promise.all(settled), limit])
const tokens = [...dialled.values()]
const twice = tokens.filter((times) => times > 1).length
console.log(JSON.stringify({ ...counts, ids: failed, dialled: tokens.length, twice }))
process.exit()
