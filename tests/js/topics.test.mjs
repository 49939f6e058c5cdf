import assert from "node:assert/strict"
import { readFile } from "node:fs/promises"
import { test } from "node:test"

import { holding, openPage, root, script, settled, WebSocketManager } from "./support.mjs"
import { TopicServer } from "./topic_server.mjs"

/** A page whose connection is open, with a server of topics. */
function open(t, { sizes = { "orders/1": 100 }, options, document } = {}) {
  const page = openPage(t, { document })
  const server = new TopicServer(sizes)
  const { manager, errors, codes } = page.connect("/ws/", null, options)
  return {
    page,
    server,
    manager,
    errors,
    codes,
    /** What the client sent about topics on the present connection. */
    sent: () => page.socket.sent.filter(({ type }) => /subscribe$/.test(type)),
    /** Let the server work on everything, and let everything arrive. */
    flow: (refuse) => server.flow(page, refuse),
    async reconnect() {
      page.socket.drop()
      await page.pass(20000)
      await this.flow()
    },
  }
}

/** Subscribe, and write down calls, gaps and states in order. */
function follow(manager, name, options) {
  const log = []
  const subscription = manager.subscribe(name, (data, { offset, topic }) => log.push(`${topic} ${offset}`), options)
  subscription.on("gap", ({ reason, position }) => log.push(`gap: ${reason} ${position?.offset}`))
  subscription.on("state", ({ state, reason }) => log.push(reason ? `${state}: ${reason}` : state))
  return { log, subscription }
}

const at = (offset, epoch = "e1") => ({ epoch, offset })
const SUBSCRIBE = "websocket.subscribe"

test("a subscription before open waits, and gets the messages after it is live", async (t) => {
  const { manager, server, flow } = open(t)
  const { log, subscription } = follow(manager, "orders/1")
  assert.equal(subscription.topic, "orders/1")
  assert.equal(subscription.state, "subscribing")
  assert.equal(subscription.position, null)
  server.publish("orders/1")
  await flow()

  assert.deepEqual(subscription.position, at(1))
  server.publish("orders/1")
  await flow()

  assert.deepEqual(log, ["live", "orders/1 2"])
  assert.equal(subscription.state, "live")
  assert.deepEqual(subscription.position, at(2))
})

test("after a reconnect the messages that were missed come first", async (t) => {
  const { manager, server, flow, page } = open(t)
  const { log } = follow(manager, "orders/1")
  await flow()
  page.socket.drop()
  server.publish("orders/1")
  server.publish("orders/1")
  await page.pass(20000)
  await flow()
  server.publish("orders/1")
  await flow()

  const messages = ["orders/1 1", "orders/1 2", "live", "orders/1 3"]
  assert.deepEqual(log, ["live", "subscribing: disconnected", ...messages])
})

test("a reconnect sends 100 subscriptions in one message", async (t) => {
  const names = Array.from({ length: 100 }, (_, n) => `orders/${n}`)
  const sizes = Object.fromEntries(names.map((name) => [name, 10]))
  const site = open(t, { sizes })
  const subscriptions = names.map((name) => site.manager.subscribe(name, () => {}))
  await site.flow()
  assert.equal(site.sent().length, 1)
  await site.reconnect()

  const [{ subscriptions: sent }, ...others] = site.sent()
  assert.deepEqual(sent.map(({ topic }) => topic), names)
  assert.deepEqual(sent.map(({ since }) => since), names.map(() => at(0)))
  assert.deepEqual(others, [])
  assert.ok(subscriptions.every(({ state }) => state === "live"))
})

test("100 topics of an open page stay below RATE_LIMIT 20/s, also if each is subscribed on its own", async (t) => {
  const sizes = Object.fromEntries(Array.from({ length: 100 }, (_, n) => [`orders/${n}`, 10]))
  const { manager, flow, sent } = open(t, { sizes })
  await flow()
  for (const name in sizes) {
    manager.subscribe(name, () => {})
    await settled()
  }
  // The first is on its way, and the others wait for its reply.
  assert.equal(sent().length, 1)
  await flow()

  assert.deepEqual(sent().map(({ subscriptions }) => subscriptions.length), [1, 99])
})

test("rate_limited and unavailable are asked again after a random wait, on their own", async (t) => {
  const { manager, flow, page, server, sent, errors } = open(t)
  const { log, subscription } = follow(manager, "orders/1")
  await flow(() => "unavailable")
  assert.equal(sent().length, 1)
  await page.pass(1699)
  assert.equal(sent().length, 1)
  await page.pass(1)
  assert.equal(sent().length, 2)
  // The message as a whole is refused.
  page.socket.push({ key: sent()[1].reply_key, error: { code: "rate_limited" } })
  server.connection.read = page.socket.sent.length
  await page.pass(2300)
  assert.equal(sent().length, 3)
  await flow()

  assert.deepEqual(log, ["live"])
  assert.deepEqual(errors, [])
})

test("a topic that the server ends for a while is resumed", async (t) => {
  const { manager, flow, page, server } = open(t)
  const { log } = follow(manager, "orders/1")
  await flow()
  server.connection.end("orders/1", "unavailable")
  await flow()
  server.publish("orders/1")
  await page.pass(1700)
  await flow()

  assert.deepEqual(log, ["live", "subscribing: unavailable", "orders/1 1", "live"])
})

test("a refusal goes to the handlers of the subscription, else to on(error) of the manager", async (t) => {
  const { manager, flow, errors } = open(t)
  const { log } = follow(manager, "orders/1")
  const bare = manager.subscribe("orders/1", () => {})
  await flow(() => "permission_denied")

  assert.deepEqual(log, ["ended: permission_denied"])
  assert.equal(bare.state, "ended")
  assert.deepEqual(errors.map(({ code, topic }) => [code, topic]), [["permission_denied", "orders/1"]])
})

test("a permission that is taken away ends the subscription, and another one can be made", async (t) => {
  const { manager, flow, server } = open(t)
  const first = follow(manager, "orders/1")
  await flow()
  server.connection.end("orders/1", "permission_denied")
  await flow()
  const second = follow(manager, "orders/1")
  await flow()
  server.publish("orders/1")
  await flow()

  assert.deepEqual(first.log, ["live", "ended: permission_denied"])
  assert.deepEqual(second.log, ["live", "orders/1 1"])
})

test("a server without topics is never asked, and the subscription ends as unsupported", async (t) => {
  const page = openPage(t)
  const { manager, codes } = page.connect()
  const { log } = follow(manager, "orders/1")
  page.socket.accept()
  page.socket.push({ key: "websocket.ready", identity: "u-1" })
  const late = follow(manager, "orders/1")
  await settled()

  assert.deepEqual(log, ["ended: unsupported"])
  assert.deepEqual(late.log, ["ended: unsupported"])
  assert.deepEqual(page.socket.sent, [])
  assert.deepEqual(codes(), [])
})

test("a server without websocket.ready is never asked", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  const { subscription } = follow(manager, "orders/1")
  page.socket.accept()
  await page.pass(60000)

  assert.deepEqual(page.socket.sent, [])
  assert.equal(subscription.state, "subscribing")
})

test("a position that cannot be replayed is one gap, and the subscription goes on from there", async (t) => {
  const { manager, flow, server } = open(t, { sizes: { "orders/1": 2 } })
  for (let n = 0; n < 5; n++) server.publish("orders/1")
  const { log, subscription } = follow(manager, "orders/1", { since: at(1) })
  await flow()
  server.publish("orders/1")
  await flow()

  assert.deepEqual(log, ["gap: expired 5", "live", "orders/1 6"])
  assert.deepEqual(subscription.position, at(6))
})

test("a position that the server has never reached, as after a restored backup, is one gap", async (t) => {
  const { manager, flow, server } = open(t)
  const ahead = follow(manager, "orders/1", { since: at(5) })
  await flow()
  server.publish("orders/1")
  await flow()

  assert.deepEqual(ahead.log, ["gap: expired 0", "live", "orders/1 1"])
})

test("a position that the page has read after the last message joins a live topic", async (t) => {
  const { manager, flow, server, sent } = open(t)
  const first = follow(manager, "orders/1")
  await flow()
  server.publish("orders/1")
  server.publish("orders/1")
  const ahead = follow(manager, "orders/1", { since: at(1) })
  await settled()
  await flow()

  assert.equal(sent().length, 1)
  assert.deepEqual(first.log, ["live", "orders/1 1", "orders/1 2"])
  assert.deepEqual(ahead.log, ["live", "orders/1 2"])
})

test("a gap while live moves the position", async (t) => {
  const { manager, flow, server } = open(t)
  const { log, subscription } = follow(manager, "orders/1")
  await flow()
  server.publish("orders/1")
  server.clear("orders/1")
  server.publish("orders/1")
  await flow()

  assert.deepEqual(log, ["live", "orders/1 1", "gap: epoch 0", "orders/1 1"])
  assert.deepEqual(subscription.position, at(1, "e2"))
})

test("a topic without history has no position, and each lost connection is a gap", async (t) => {
  const { manager, flow, server, ...site } = open(t, { sizes: { scores: 0 } })
  const { log, subscription } = follow(manager, "scores")
  await flow()
  server.publish("scores")
  await flow()
  site.page.socket.drop()
  await site.page.pass(20000)
  await flow()

  assert.deepEqual(log, ["live", "scores undefined", "subscribing: disconnected", "gap: none_kept undefined", "live"])
  assert.equal(subscription.position, null)
})

test("two subscriptions of one topic have positions of their own", async (t) => {
  const { manager, flow, server, sent } = open(t)
  for (let n = 0; n < 4; n++) server.publish("orders/1")
  const newer = follow(manager, "orders/1", { since: at(3) })
  await flow()
  const same = follow(manager, "orders/1", { since: null })
  await flow()
  assert.equal(sent().length, 1, "the second one joins without a message")
  const older = follow(manager, "orders/1", { since: at(1) })
  await flow()
  server.publish("orders/1")
  await flow()

  assert.deepEqual(sent().map(({ subscriptions }) => subscriptions), [
    [{ topic: "orders/1", since: at(3) }],
    [{ topic: "orders/1", since: at(1) }],
  ])
  assert.deepEqual(newer.log, ["orders/1 4", "live", "subscribing", "live", "orders/1 5"])
  assert.deepEqual(same.log, ["live", "subscribing", "live", "orders/1 5"])
  assert.deepEqual(older.log, ["orders/1 2", "orders/1 3", "orders/1 4", "live", "orders/1 5"])
})

test("one request for the oldest position serves all subscriptions of the topic", async (t) => {
  const { manager, flow, server, sent } = open(t)
  for (let n = 0; n < 4; n++) server.publish("orders/1")
  const [third, first, second] = [3, 1, 2].map((offset) => follow(manager, "orders/1", { since: at(offset) }))
  await flow()

  assert.deepEqual(sent().map(({ subscriptions }) => subscriptions), [[{ topic: "orders/1", since: at(1) }]])
  assert.deepEqual(third.log, ["orders/1 4", "live"])
  assert.deepEqual(second.log, ["orders/1 3", "orders/1 4", "live"])
  assert.deepEqual(first.log, ["orders/1 2", "orders/1 3", "orders/1 4", "live"])
})

test("a gap of an older subscription is none of a newer one", async (t) => {
  const { manager, flow, server } = open(t, { sizes: { "orders/1": 3 } })
  for (let n = 0; n < 6; n++) server.publish("orders/1")
  const newer = follow(manager, "orders/1", { since: at(4) })
  const older = follow(manager, "orders/1", { since: at(1) })
  await flow()

  assert.deepEqual(newer.log, ["orders/1 5", "orders/1 6", "live"])
  assert.deepEqual(older.log.slice(0, 2), ["gap: expired 6", "live"])
  assert.equal(older.subscription.state, "live")
})

test("unsubscribe() and subscribe() at the same moment send nothing, and lose nothing", async (t) => {
  const { manager, flow, server, sent } = open(t)
  const first = follow(manager, "orders/1")
  await flow()
  first.subscription.unsubscribe()
  const second = follow(manager, "orders/1")
  await settled()
  server.publish("orders/1")
  await flow()

  assert.equal(sent().length, 1)
  assert.deepEqual(first.log, ["live", "ended: unsubscribed"])
  assert.deepEqual(second.log, ["live", "orders/1 1"])
})

test("messages between an unsubscribe and the reply of the next subscribe are ignored", async (t) => {
  const { manager, flow, server, sent } = open(t)
  const first = follow(manager, "orders/1")
  await flow()
  first.subscription.unsubscribe()
  await settled()
  const second = follow(manager, "orders/1")
  await settled()
  // The server has not read the unsubscribe yet.
  server.publish("orders/1")
  await flow()
  server.publish("orders/1")
  await flow()

  assert.deepEqual(sent().map(({ type }) => type), [SUBSCRIBE, "websocket.unsubscribe", SUBSCRIBE])
  assert.deepEqual(second.log, ["live", "orders/1 2"])
})

test("the last unsubscribe() of a topic ends it on the server", async (t) => {
  const { manager, flow, server, sent } = open(t)
  const [one, two] = [follow(manager, "orders/1"), follow(manager, "orders/1")]
  await flow()
  one.subscription.unsubscribe()
  one.subscription.unsubscribe()
  await flow()
  assert.equal(sent().length, 1)
  two.subscription.unsubscribe()
  await flow()

  assert.deepEqual(sent()[1].topics, ["orders/1"])
  assert.equal(server.connection.live.size, 0)
  assert.deepEqual(one.log, ["live", "ended: unsubscribed"])
})

test("an unsubscribe that is refused for a while is sent again", async (t) => {
  const { manager, flow, sent, page, server } = open(t)
  const { subscription } = follow(manager, "orders/1")
  await flow()
  subscription.unsubscribe()
  await settled()
  page.socket.push({ key: sent()[1].reply_key, error: { code: "rate_limited" } })
  server.connection.read = page.socket.sent.length
  await page.pass(1700)
  await flow()

  assert.deepEqual(sent().map(({ type }) => type).slice(1), ["websocket.unsubscribe", "websocket.unsubscribe"])
  assert.equal(server.connection.live.size, 0)
})

test("a handler that throws is reported, and the position moves on", async (t) => {
  const { manager, flow, server, errors } = open(t)
  const calls = []
  const subscription = manager.subscribe("orders/1", (data, { offset }) => {
    calls.push(offset)
    throw new Error("broken")
  })
  const other = follow(manager, "orders/1")
  await flow()
  server.publish("orders/1")
  server.publish("orders/1")
  await flow()

  assert.deepEqual(calls, [1, 2])
  assert.deepEqual(subscription.position, at(2))
  assert.deepEqual(errors.map(({ code, cause }) => [code, cause.message]), [["handler_failed", "broken"], ["handler_failed", "broken"]])
  assert.deepEqual(other.log, ["live", "orders/1 1", "orders/1 2"])
})

test("a handler that unsubscribes gets no further message, neither of a replay nor live", async (t) => {
  for (const since of [at(0), null]) {
    const { manager, flow, server } = open(t)
    if (since) for (let n = 0; n < 3; n++) server.publish("orders/1")
    const calls = []
    const subscription = manager.subscribe("orders/1", (data, { offset }) => {
      calls.push(offset)
      subscription.unsubscribe()
    }, { since })
    await flow()
    if (!since) for (let n = 0; n < 3; n++) server.publish("orders/1")
    await flow()

    assert.deepEqual(calls, [1])
    assert.equal(server.connection.live.size, 0)
    t.mock.timers.reset()
  }
})

test("a handler that closes the manager gets no further message of a replay", async (t) => {
  const { manager, flow, server } = open(t)
  for (let n = 0; n < 3; n++) server.publish("orders/1")
  const calls = []
  manager.subscribe("orders/1", (data, { offset }) => {
    calls.push(offset)
    manager.close()
  }, { since: at(0) })
  await flow()

  assert.deepEqual(calls, [1])
})

test("an answer that a handler interrupts leaves the other subscriptions as they were", async (t) => {
  const { manager, flow, server, page } = open(t)
  for (let n = 0; n < 3; n++) server.publish("orders/1")
  const calls = []
  const first = manager.subscribe("orders/1", (data, { offset }) => {
    calls.push(offset)
    if (offset === 1) manager.reconnect()
  }, { since: at(0) })
  const second = follow(manager, "orders/1")
  const third = follow(manager, "orders/1", { since: at(2) })
  server.accept(page.socket)
  for (let n = 0; n < 3; n++) {
    server.connection.receive()
    server.connection.answer()
    server.connection.send()
    await settled()
  }

  assert.deepEqual(calls, [1])
  assert.deepEqual([first, second.subscription, third.subscription].map(({ position }) => position), [at(1), null, at(2)])
  await flow()
  assert.deepEqual(calls, [1, 2, 3])
  assert.deepEqual(second.log, ["live"])
  assert.deepEqual(third.log, ["orders/1 3", "live"])
})

test("subscribe() after close() waits for reconnect(), without a timer", async (t) => {
  const { manager, flow, server, page } = open(t)
  const before = follow(manager, "orders/1")
  await flow()
  manager.close()
  const after = follow(manager, "orders/1")
  await page.pass(60000)
  assert.equal(after.subscription.state, "subscribing")
  assert.equal(page.timers.size, 0)
  server.publish("orders/1")
  manager.reconnect()
  await flow()

  assert.deepEqual(before.log, ["live", "subscribing: disconnected", "orders/1 1", "live"])
  assert.deepEqual(after.log, ["live"])
})

test("an aborted signal ends the subscription, also before it begins", async (t) => {
  const { manager, flow, server, sent } = open(t)
  const never = manager.subscribe("orders/1", assert.fail, { signal: AbortSignal.abort() })
  await flow()
  assert.equal(never.state, "ended")
  assert.deepEqual(sent(), [])
  const aborter = new AbortController()
  const { log } = follow(manager, "orders/1", { signal: aborter.signal })
  await flow()
  aborter.abort()
  server.publish("orders/1")
  await flow()

  assert.deepEqual(log, ["live", "ended: aborted"])
  assert.equal(server.connection.live.size, 0)
})

test("another user begins without the positions of the first one", async (t) => {
  const { manager, flow, server, page, sent, codes } = open(t, { options: { allowUserChange: true } })
  const { log } = follow(manager, "orders/1")
  await flow()
  page.socket.drop()
  server.publish("orders/1")
  await page.pass(20000)
  server.user = "u-2"
  await flow()

  assert.deepEqual(codes(), ["user_changed"])
  assert.deepEqual(sent()[0].subscriptions, [{ topic: "orders/1" }])
  assert.deepEqual(log, ["live", "subscribing: disconnected", "gap: identity 1", "live"])
})

test("the gap of another user has its own reason, beside a position that cannot be replayed", async (t) => {
  const { manager, flow, server, page } = open(t, { options: { allowUserChange: true } })
  const first = follow(manager, "orders/1")
  await flow()
  page.socket.drop()
  server.user = "u-2"
  await page.pass(20000)
  await flow(() => "unavailable")
  const second = follow(manager, "orders/1", { since: at(1, "e0") })
  await page.pass(20000)
  await flow()

  assert.deepEqual(first.log, ["live", "subscribing: disconnected", "gap: identity 0", "live"])
  assert.deepEqual(second.log, ["gap: epoch 0", "live"])
})

test("the positions of the page are those of its subscriptions, and not those of another user", async (t) => {
  const positions = JSON.stringify({ "orders/1": at(1) })
  for (const [identity, log] of [
    ["u-1", ["orders/1 2", "live"]],
    ["u-2", ["gap: identity 2", "live"]],
  ]) {
    const document = holding({ socketPath: "/ws/", identity, positions })
    const page = openPage(t, { document })
    const server = new TopicServer({ "orders/1": 100 })
    server.publish("orders/1")
    server.publish("orders/1")
    const manager = new WebSocketManager(null, null, { allowUserChange: true, logger: false })
    const followed = follow(manager, "orders/1")
    const now = follow(manager, "orders/1", { since: null })
    await server.flow(page)

    assert.deepEqual(followed.log, log)
    assert.deepEqual(now.log, ["live"])
    manager.close()
    t.mock.timers.reset()
  }
})

test("an answer without the topic is asked again, and one of another form harms nothing", async (t) => {
  for (const data of [{ subscriptions: [] }, { subscriptions: [null] }, null, 5]) {
    const { manager, flow, server, page, sent } = open(t)
    const { log } = follow(manager, "orders/1")
    server.accept(page.socket)
    server.connection.send()
    await settled()
    page.socket.push({ key: sent()[0].reply_key, data })
    server.connection.read = page.socket.sent.length
    await page.pass(1700)
    await flow()

    assert.deepEqual(log, ["live"])
    manager.close()
    t.mock.timers.reset()
  }
})

test("a topic, a handler and a position of another type are refused at once", (t) => {
  const { manager } = open(t)

  assert.throws(() => manager.subscribe(1, () => {}), /key must be a string, not number/)
  assert.throws(() => manager.subscribe("orders/1"), /handler must be a function, not undefined/)
  // A topic without history has the position with the empty epoch.
  assert.equal(manager.subscribe("scores", () => {}, { since: { epoch: "", offset: 0 } }).state, "subscribing")
  for (const since of [5, {}, { epoch: "e1" }, { offset: 1 }]) {
    assert.throws(() => manager.subscribe("orders/1", () => {}, { since }), /since must be a position/)
  }
})

test("a page with topics has one timer, and none after close()", async (t) => {
  const { manager, flow, page, server } = open(t)
  follow(manager, "orders/1")
  await flow()

  assert.equal(page.timers.size, 1)
  manager.close()
  assert.equal(page.timers.size, 0)
  assert.equal(page.listening, 0)
})

test("in a worker, and in React Native, there is no page with positions", async (t) => {
  for (const document of [null, { querySelector: undefined }]) {
    const { manager, flow, server } = open(t, { document })
    const { log } = follow(manager, "orders/1")
    await flow()
    server.publish("orders/1")
    await flow()

    assert.deepEqual(log, ["live", "orders/1 1"])
    manager.close()
    t.mock.timers.reset()
  }
})

// The documentation

const documentation = await readFile(new URL("docs/client.rst", root), "utf8")

/** The blocks of docs/client.rst of this kind. */
function blocksOf(kind) {
  const found = documentation.matchAll(new RegExp(`^\\.\\. code-block:: ${kind}\\n\\n((?: {4}.*\\n|\\n)+)`, "gm"))
  return [...found].map(([, block]) => block.replace(/^ {4}/gm, ""))
}

test("the first example of the documentation runs", async (t) => {
  const { manager, flow, server } = open(t, { sizes: { "orders/42": 10 } })
  const written = t.mock.method(console, "log", () => {})
  new Function("manager", blocksOf("javascript")[0])(manager)
  await flow()
  server.publish("orders/42")
  await flow()

  assert.deepEqual(written.mock.calls.map((call) => call.arguments), [
    ["live", null],
    ["orders/42", 1, { epoch: "e1", offset: 1 }],
  ])
})

test("a page that does at a gap what the documentation says shows the data of the server", async (t) => {
  const { manager, flow, server } = open(t, { sizes: { orders: 2 } })
  const feed = server.feeds.get("orders")
  let shown
  const pending = []
  // The view reads the position and the data. The page gets them later.
  const answer = () => {
    const data = { orders: Array.from({ length: feed.top }, (_, n) => n + 1), position: { ...feed.position } }
    return new Promise((done) => pending.push(() => done({ json: async () => data })))
  }
  const drawAll = (orders) => (shown = [...orders])
  const drawOne = ({ offset }) => shown.push(offset)
  server.publish("orders")
  new Function("manager", "fetch", "drawAll", "drawOne", blocksOf("javascript")[1])(manager, answer, drawAll, drawOne)
  pending.shift()()
  await flow()
  server.skip("orders", 3)
  await flow()
  // During the request, and before its answer arrives.
  server.publish("orders")
  await flow()
  pending.shift()()
  await flow()
  server.publish("orders")
  await flow()

  assert.deepEqual(pending, [])
  assert.deepEqual(shown, [1, 2, 3, 4, 5, 6])
})

test("a handler of a state that closes the manager prevents the request for other topics", async (t) => {
  const { manager, flow, page, sent } = open(t, { sizes: { "orders/1": 100, "orders/2": 100 } })
  manager.subscribe("orders/1", () => {})
  await flow()
  const before = sent().length
  manager.subscribe("orders/1", () => {}).on("state", () => manager.close())
  manager.subscribe("orders/2", () => {})
  await flow()

  assert.equal(manager.state, "closed")
  assert.equal(sent().length, before)
  assert.equal(page.timers.size, 0)
})

test("a subscription that ends with its whole request reports the text of the server's error", async (t) => {
  const { manager, flow, page, sent, errors } = open(t)
  await flow()
  manager.subscribe("orders/1", () => {})
  await settled()
  page.socket.push({ key: sent()[0].reply_key, error: { code: "bad_message", message: "Too long" } })

  assert.deepEqual(errors.map(({ code, message, topic }) => [code, message, topic]), [["bad_message", "Too long", "orders/1"]])
})

test("__proto__ and constructor are ordinary topics, with and without a position of the page", async (t) => {
  const names = ["__proto__", "constructor"]
  const document = holding({ positions: '{"__proto__": {"epoch": "e1", "offset": 7}}' })
  const { manager, flow, sent } = open(t, { document })
  await flow()
  for (const name of names) manager.subscribe(name, () => {})
  await settled()

  assert.deepEqual(sent()[0].subscriptions.map(({ topic, since }) => [topic, since]), [
    ["__proto__", at(7)],
    ["constructor", undefined],
  ])
})

test("the drawing of the documentation has the states and the reasons of a subscription", async () => {
  const [drawing] = blocksOf("text")
  const source = await readFile(script, "utf8")
  const states = ["subscribing", "live", "ended"]
  const reasons = ["disconnected", "unsubscribed", "aborted", "unsupported", "unavailable"]

  for (const name of [...states, ...reasons]) {
    assert.match(source, new RegExp(`"${name}"`))
    assert.match(drawing, new RegExp(`\\b${name}\\b`))
  }
})
