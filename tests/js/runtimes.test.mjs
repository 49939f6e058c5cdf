import assert from "node:assert/strict"
import { execFile } from "node:child_process"
import { createServer } from "node:http"
import { test } from "node:test"
import { promisify } from "node:util"

import { script } from "./support.mjs"

const run = promisify(execFile)

/** Run `code` in a new process of Node with its native WebSocket; returns what it prints, as JSON. */
async function runInNode(code) {
  const flags = ["--disable-warning=ExperimentalWarning", "--experimental-websocket"]
  const start = `const WebSocketManager = require(${JSON.stringify(script.pathname)})\n`
  const { stdout } = await run(process.execPath, [...flags, "-e", start + code], { timeout: 30_000 })
  return JSON.parse(stdout)
}

/** Listen with an HTTP server; returns the URL of a socket there. */
async function listen(t, handler) {
  const server = createServer(handler)
  t.after(() => server.close())
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening))
  return { server, url: `ws://127.0.0.1:${server.address().port}/` }
}

const refusing = {
  "closed port": async (t) => {
    const { server, url } = await listen(t)
    await new Promise((closed) => server.close(closed))
    return url
  },
  "server that answers 403": async (t) => {
    const { url } = await listen(t, (request, response) => response.writeHead(403).end())
    return url
  },
}

for (const [name, start] of Object.entries(refusing)) {
  test(`with Node's own WebSocket, the next dial to a ${name} waits for no time limit`, async (t) => {
    const url = await start(t)
    const { events, ms } = await runInNode(`
      const began = Date.now()
      const events = []
      const options = { backoff: () => 10, maxRetries: 2, logger: false }
      const manager = new WebSocketManager(${JSON.stringify(url)}, null, options)
      manager.on("state", ({ state, reason }) => {
        events.push([state, reason])
        if (state === "closed") console.log(JSON.stringify({ events, ms: Date.now() - began }))
      })`)

    const again = [["waiting", "disconnected"], ["connecting", "disconnected"]]
    assert.deepEqual(events, [...again, ...again, ["closed", "max_retries"]])
    assert.ok(ms < 8000, `${ms} ms`)
  })
}

test("with Node's own fetch, a redirect to a login page stops the manager as signed_out", async (t) => {
  const asked = []
  const { server } = await listen(t, ({ url, method }, response) => {
    asked.push([method, url])
    if (url === "/token/") response.writeHead(302, { Location: "/login/" }).end()
    else response.writeHead(200, { "Content-Type": "text/html" }).end("<!doctype html><form>")
  })
  const tokenURL = `http://127.0.0.1:${server.address().port}/token/`
  const state = await runInNode(`
    const options = { tokenURL: ${JSON.stringify(tokenURL)}, logger: false }
    const manager = new WebSocketManager("ws://127.0.0.1:1/", null, options)
    manager.on("state", ({ state, reason }) => {
      console.log(JSON.stringify([state, reason]))
      manager.close()
    })`)

  assert.deepEqual(state, ["closed", "signed_out"])
  assert.deepEqual(asked, [["POST", "/token/"]])
})
