import assert from "node:assert/strict"
import { readFile } from "node:fs/promises"
import { test } from "node:test"
import { Script } from "node:vm"

import { load, ours } from "../../benchmarks/client/clients.mjs"
import { measure, ROWS } from "../../benchmarks/client/figures.mjs"
import { count, measureResume, RESUME_PAGES, RESUME_ROWS } from "../../benchmarks/client/resume.mjs"
import { resuming } from "../../benchmarks/client/resuming.mjs"

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

  for (const { name, bar = "\\-" } of [...ROWS, ...RESUME_ROWS]) {
    const cells = lines.find((line) => line.startsWith(`${name}  `))?.split(/ {2,}/)
    assert.equal(cells?.[1], bar, name)
  }
})

// The clients that resume. The figures of the others are measured by `make figures`.

RESUME_PAGES.count = 4
const [resumes] = resuming

test("the client reaches the promised figures of missed messages", async (t) => {
  const figures = await measureResume(await load(resumes))

  for (const { name, bar, show, holds } of RESUME_ROWS) {
    t.diagnostic(`${name}: ${show(figures)}`)
    if (holds) await t.test(name, () => assert.ok(holds(figures), `${show(figures)}, promised ${bar}`))
  }
  assert.ok(figures.sleep.lost > 0 && figures.forgotten.lost > 0, "the server cannot replay what it does not keep")
})

// Each asks for the messages after `since`, and reconnects at once.
const follower = new Script(`
  function follow(since, onReply, onMessage) {
    const socket = new WebSocket("wss://example.com/ws/")
    const ask = () => JSON.stringify({ type: "websocket.subscribe", subscriptions: [{ topic: "numbers", since: since() }] })
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data)
      if (message.key === "websocket.ready") socket.send(ask())
      else if (message.data.subscriptions) onReply(message.data.subscriptions[0])
      else onMessage(message)
    }
    socket.onclose = () => setTimeout(() => follow(since, onReply, onMessage), 200)
  }
  var client = { follow }`)

const following = (open) => ({
  script: follower,
  open: ({ follow }, page, { receive, gap }) => open(follow, ({ data }) => receive(data.number), gap),
  start: resumes.start,
})

test("each promise about missed messages is missed by a simple client", async () => {
  const clients = {
    forgets: following((follow, receive) => follow(() => null, () => {}, receive)),
    // From the first message on, after each loss, and it takes each reply for a gap.
    repeats: following((follow, receive, gap) => {
      const handleReply = ({ messages }) => {
        messages.reverse().forEach(receive)
        gap()
      }
      follow(() => ({ epoch: "e1", offset: 0 }), handleReply, receive)
    }),
  }
  const reached = {}
  for (const [name, client] of Object.entries(clients)) {
    const figures = await measureResume(client)
    reached[name] = RESUME_ROWS.filter(({ holds }) => holds && holds(figures)).map((row) => row.name)
  }

  assert.deepEqual(reached.forgets, ["Reports where nothing is lost", "Handled twice", "Handled out of order"])
  assert.deepEqual(reached.forgets.filter((name) => reached.repeats.includes(name)), [])
})

test("numbers that are lost, repeated, out of order and reported are counted", () => {
  const none = { lost: 0, unreported: 0, twice: 0, disordered: 0, needless: 0 }
  for (const [events, last, found] of [
    [[3, 4, 5], 5, {}],
    [[3, 5], 5, { lost: 1, unreported: 1 }],
    [[3, 4], 6, { lost: 2, unreported: 2 }],
    [[3, "gap", 6], 6, { lost: 2 }],
    [[3, "gap", 4], 4, { needless: 1 }],
    [[3, "gap"], 3, { needless: 1 }],
    [[3, "gap"], 5, { lost: 2 }],
    [[3, 5, 4, 6], 6, { disordered: 1 }],
    [[3, 4, 4, 3], 4, { twice: 2 }],
  ]) {
    assert.deepEqual(count(events, last), { ...none, ...found }, String(events))
  }
})
