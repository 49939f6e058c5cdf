import assert from "node:assert/strict"
import { readFile } from "node:fs/promises"
import { test } from "node:test"
import { Script } from "node:vm"

import { load, ours } from "../../benchmarks/client/clients.mjs"
import { measure, ROWS } from "../../benchmarks/client/figures.mjs"

const PROMISES = ROWS.filter(({ holds }) => holds)

// Two simple clients. Naive reconnects and queues messages. Careless waits longer, drops messages, and
// requests one token more than it uses.
const script = new Script(`
  class Naive {
    queue = []
    wait = 1000
    constructor(token) {
      this.token = token()
      this.dial(token)
      window.addEventListener("online", () => this.socket.readyState === WebSocket.OPEN || this.dial(token))
    }
    dial(token) {
      this.socket = new WebSocket("wss://example.com/ws/" + this.token)
      this.socket.onopen = () => this.queue.splice(0).forEach((text) => this.socket.send(text))
      this.socket.onclose = () => setTimeout(() => this.dial(token), this.wait)
    }
    send(text) {
      if (this.socket.readyState === WebSocket.OPEN) this.socket.send(text)
      else this.keep(text)
    }
    keep(text) {
      this.queue.push(text)
    }
    close() {
      this.socket.close()
    }
  }
  class Careless extends Naive {
    wait = 60_000
    dial(token) {
      this.token = token()
      super.dial(token)
    }
    keep() {}
  }
  var client = { Naive, Careless }`)

const simpleClient = (name) => ({
  bytes: 0,
  script,
  open({ [name]: Client }, { token }) {
    const client = new Client(token)
    return { send: () => client.send("figure"), close: () => client.close() }
  },
  serve: () => () => {},
})

test("the client reaches the promised figures", async (t) => {
  const figures = await measure(await load(ours))

  for (const { name, bar, show, holds } of PROMISES) {
    t.diagnostic(`${name}: ${show(figures)}, promised ${bar}`)
    await t.test(name, () => assert.ok(holds(figures), `${show(figures)}, promised ${bar}`))
  }
  assert.equal(figures.kept, 100, "the queue is sent when the server is back")
})

test("each promise is missed by a naive or a careless client", async () => {
  const reached = async (name) => {
    const figures = await measure(simpleClient(name))
    return PROMISES.filter(({ holds }) => holds(figures)).map((row) => row.name)
  }

  const [naive, careless] = [await reached("Naive"), await reached("Careless")]
  assert.deepEqual(naive, [
    "10 minutes down: longest wait, s",
    "... neither kept nor reported as lost",
    "Tokens: one call for",
  ])
  assert.deepEqual(naive.filter((name) => careless.includes(name)), [])
})

test("the page in docs has the measured rows", async () => {
  const page = await readFile(new URL("../../docs/client.rst", import.meta.url), "utf8")
  const lines = page.split("\n")

  for (const { name, bar = "\\-" } of ROWS) {
    const cells = lines.find((line) => line.startsWith(`${name}  `))?.split(/ {2,}/)
    assert.equal(cells?.[1], bar, name)
  }
})
