import assert from "node:assert/strict"
import { test } from "node:test"

import { openPage, settled, tokens } from "./support.mjs"

const PING = { type: "websocket.ping" }
const SECOND = 1000

/** A page with an open socket, which has received websocket.ready. */
function openReady(t, options) {
  const page = openPage(t)
  const connection = page.connect("/ws/", null, options)
  page.socket.accept()
  page.socket.push({ key: "websocket.ready", identity: "u-1" })
  return { page, ...connection }
}

const pings = (socket) => socket.sent.filter(({ type }) => type === "websocket.ping").length
const pong = (page) => page.socket.push({ key: "websocket.pong" })

/** Milliseconds until the manager closes its connection, in steps of 100, or `limit` if it stays open. */
function lifetime(page, manager, limit = 300 * SECOND) {
  let ms = 0
  for (; ms < limit && manager.state === "open"; ms += 100) page.tick(100)
  return ms
}

test("after 25 s of silence there is one ping, and 25 s after its answer the next one", (t) => {
  const { page, manager } = openReady(t)

  page.tick(25 * SECOND - 1)
  assert.deepEqual(page.socket.sent, [])
  page.tick(1)
  assert.deepEqual(page.socket.sent, [PING])
  page.tick(9 * SECOND)
  pong(page)
  page.tick(25 * SECOND - 1)
  assert.equal(pings(page.socket), 1)
  page.tick(1)

  assert.deepEqual(page.socket.sent, [PING, PING])
  assert.equal(manager.state, "open")
})

test("a half-open connection is noticed after 35 s, closed, and followed by a new dial", (t) => {
  const { page, manager, states } = openReady(t)
  const [dead] = page.sockets

  assert.equal(lifetime(page, manager), 35 * SECOND)

  assert.deepEqual(states.at(-1), { state: "waiting", reason: "timeout", attempt: 2, delay: 1700 })
  assert.equal(dead.readyState, 2)
  page.tick(1700)
  assert.equal(page.sockets.length, 2)
})

test("late events of a dead socket change nothing", (t) => {
  const { page, manager } = openReady(t)
  const received = []
  manager.addMessageListener("news", (message) => received.push(message))
  const [dead] = page.sockets
  lifetime(page, manager)
  page.tick(1700)
  page.socket.accept()
  page.tick(1000)

  dead.push({ key: "news" })
  dead.drop(4403)

  assert.deepEqual(received, [])
  assert.equal(manager.state, "open")
  assert.equal(page.sockets.length, 2)
})

test("calls sent on a dead connection are disconnected, and never sent again", async (t) => {
  const { page, manager, codes } = openReady(t, { identity: "u-1" })
  const ends = []
  manager.request({ type: "a" }, { timeout: Infinity }).catch(({ code }) => ends.push(code))
  manager.sendJSON({ type: "b" })
  lifetime(page, manager)
  await settled()
  page.tick(1700)
  page.socket.accept()
  page.socket.push({ key: "websocket.ready", identity: "u-1" })

  assert.deepEqual(ends, ["disconnected"])
  assert.deepEqual(codes(), [])
  assert.deepEqual(page.socket.sent, [])
})

for (const [name, data] of [
  ["a push", '{"key": "news"}'],
  ["a reply to an unknown call", '{"key": "unknown", "data": 1}'],
  ["an error", '{"key": "websocket.error", "error": {"code": "rate_limited"}}'],
  ["a message that is not JSON", "}"],
]) {
  test(`${name} counts like a pong`, (t) => {
    const { page, manager } = openReady(t)
    page.tick(30 * SECOND)
    assert.equal(pings(page.socket), 1)

    page.socket.onmessage({ data })

    assert.equal(lifetime(page, manager), 35 * SECOND)
  })
}

test("a plain consumer receives no websocket.* message, and its idle connection stays open", (t) => {
  const page = openPage(t)
  const { manager, codes } = page.connect()
  page.socket.accept()
  const controller = new AbortController()
  manager.request({ type: "a" }, { signal: controller.signal }).catch(() => {})
  manager.sendJSON({ type: "b" }, () => {})
  controller.abort()

  for (let minute = 0; minute < 60; minute++) {
    page.tick(60 * SECOND)
    page.window.dispatch("online")
    page.window.dispatch("offline")
  }

  assert.equal(manager.state, "open")
  assert.deepEqual(codes(), ["timeout"])
  assert.deepEqual(page.socket.sent.map(({ type }) => type), ["a", "b"])
})

test("websocket.ready counts only for the socket that received it", (t) => {
  const { page, manager } = openReady(t, { identity: "u-1" })
  page.socket.drop()
  page.tick(1700)
  page.socket.accept()

  page.tick(60 * SECOND)
  assert.deepEqual(page.socket.sent, [])
  page.socket.push({ key: "websocket.ready", identity: "u-1" })
  page.tick(25 * SECOND)

  assert.equal(manager.state, "open")
  assert.deepEqual(page.socket.sent, [PING])
})

const ways = {
  "without a handler": (manager) => manager.sendJSON({ type: "slow" }),
  "with a handler": (manager) => manager.sendJSON({ type: "slow" }, () => {}),
  "as a request": (manager) => void manager.request({ type: "slow" }).catch(() => {}),
  "as a stream": (manager) => void manager.stream({ type: "slow" }),
}

for (const [way, send] of Object.entries(ways)) {
  test(`a call ${way} may delay the pong for 120 s`, (t) => {
    const { page, manager } = openReady(t)
    page.tick(20 * SECOND)
    send(manager)

    page.tick(119 * SECOND)
    assert.equal(manager.state, "open")
    pong(page)

    assert.equal(lifetime(page, manager), 35 * SECOND, "the call does not count after a message has arrived")
  })

  test(`120 s after a call ${way} a silent connection is dead`, (t) => {
    const { page, manager } = openReady(t)
    page.tick(20 * SECOND)
    send(manager)

    assert.equal(lifetime(page, manager), 120 * SECOND)
  })
}

test("a call sent after the ping may delay the pong too", (t) => {
  const { page, manager } = openReady(t)
  page.tick(34 * SECOND)
  manager.sendJSON({ type: "slow" })

  assert.equal(lifetime(page, manager), 120 * SECOND)
})

test("a call sent before the last message does not extend the limit", (t) => {
  const { page, manager } = openReady(t)
  manager.sendJSON({ type: "a" })
  manager.request({ type: "b" })
  page.socket.push({ key: page.socket.sent[1].reply_key, data: 1 })

  assert.equal(lifetime(page, manager), 35 * SECOND)
})

test("a call without its reply extends the limit, even if other messages have arrived", (t) => {
  const { page, manager } = openReady(t)
  manager.request({ type: "slow" }, { timeout: Infinity }).catch(() => {})
  page.tick(10 * SECOND)
  page.socket.push({ key: "progress" })

  assert.equal(lifetime(page, manager), 110 * SECOND)
})

test("a stream with parts does not extend the limit", (t) => {
  const { page, manager } = openReady(t)
  manager.stream({ type: "flow" })
  page.socket.push({ key: page.socket.sent[0].reply_key, data: 1, more: true })

  assert.equal(lifetime(page, manager), 35 * SECOND)
})

test("after a sleep of the machine a connection has 3 s to answer", (t) => {
  for (const [answer, expected] of [
    [() => {}, 3 * SECOND],
    [pong, 35 * SECOND],
  ]) {
    const { page, manager } = openReady(t)
    page.tick(10 * SECOND)
    page.sleep(3600 * SECOND)
    page.tick(0)
    assert.equal(pings(page.socket), 1)
    answer(page)

    assert.equal(lifetime(page, manager), expected)
    manager.close()
    t.mock.timers.reset()
  }
})

test("an answer that arrived during the sleep keeps the connection open", (t) => {
  for (const [answer, expected] of [
    [() => {}, 3 * SECOND],
    [pong, 35 * SECOND],
  ]) {
    const { page, manager } = openReady(t)
    page.tick(25 * SECOND)
    assert.equal(pings(page.socket), 1)
    page.sleep(3600 * SECOND)
    // The browser may run the timer before it delivers the answer.
    page.tick(0)
    assert.equal(manager.state, "open")
    answer(page)

    assert.equal(lifetime(page, manager), expected)
    manager.close()
    t.mock.timers.reset()
  }
})

for (const [name, answers, state] of [
  ["stays open if it answers", true, "open"],
  ["is closed if it does not", false, "waiting"],
]) {
  test(`a connection of a hidden page, whose timers fire once a minute, ${name}`, (t) => {
    const { page, manager } = openReady(t)
    page.show(false)
    let answered = 0
    for (let minute = 0; minute < 4; minute++) {
      page.sleep(60 * SECOND)
      page.tick(0)
      if (answers && pings(page.socket) > answered) pong(page)
      answered = pings(page.socket)
    }

    assert.equal(manager.state, state)
  })
}

test("a clock that is set back by an hour stops nothing", (t) => {
  const { page, manager, codes } = openReady(t)
  manager.sendJSON({ type: "a" }, () => {})
  pong(page)
  page.setBack(3600 * SECOND)

  page.tick(60 * SECOND)

  assert.deepEqual(codes(), ["timeout"])
  assert.ok(pings(page.sockets[0]) > 0)
})

test("a wait takes at most twice its time if the clock is set back", (t) => {
  const page = openPage(t)
  page.connect()
  page.socket.drop()

  page.setBack(3600 * SECOND)
  page.tick(2 * 1700)

  assert.equal(page.sockets.length, 2)
})

test("close() and a lost connection end the liveness checks, with or without a ping", (t) => {
  for (const silence of [0, 30 * SECOND]) {
    for (const end of [({ manager }) => manager.close(), ({ page }) => page.socket.drop(4403)]) {
      const { page, manager } = openReady(t)
      page.tick(silence)
      end({ page, manager })
      const sent = page.socket.sent.length

      assert.equal(page.timers.size, 0)
      page.tick(300 * SECOND)
      assert.equal(page.socket.sent.length, sent)
      t.mock.timers.reset()
    }
  }
})

test("after close() and reconnect() all limits are as before", (t) => {
  const { page, manager, states } = openReady(t)
  manager.close()
  page.tick(60 * SECOND)
  manager.reconnect()
  page.tick(10 * SECOND)
  assert.deepEqual([states.at(-1).state, states.at(-1).reason], ["waiting", "timeout"])
  page.tick(1700)
  page.socket.accept()
  page.socket.push({ key: "websocket.ready", identity: "u-1" })

  assert.equal(lifetime(page, manager), 35 * SECOND)
})

for (const [name, act, state] of [
  ["close()", (manager) => manager.close(), "closed"],
  ["reconnect()", (manager) => manager.reconnect(), "connecting"],
]) {
  test(`${name} from inside the event of a dead connection wins`, (t) => {
    const { page, manager } = openReady(t)
    manager.on("state", ({ reason }) => reason === "timeout" && act(manager))

    page.tick(35 * SECOND)

    assert.equal(manager.state, state)
    assert.equal(page.sockets.length, state === "closed" ? 1 : 2)
    assert.equal(page.timers.size, state === "closed" ? 0 : 1)
  })
}

test("after a steady connection proves dead, the first wait is the shortest again", async (t) => {
  const page = openPage(t)
  const { states } = page.connect("/ws/", tokens("u-1"))
  await settled()
  for (const delay of [1700, 2300]) {
    page.socket.drop()
    assert.equal(states.at(-1).delay, delay)
    await page.pass(delay)
  }
  page.socket.accept()
  page.socket.push({ key: "websocket.ready", identity: "u-1" })
  await page.pass(35 * SECOND)

  assert.deepEqual(states.at(-1), { state: "waiting", reason: "timeout", attempt: 2, delay: 1700 })
})

for (const [name, call] of [
  ["request()", (manager) => manager.request({ type: "poll" }).catch(() => {})],
  ["sendJSON()", (manager) => manager.sendJSON({ type: "note" })],
]) {
  test(`a half-open connection on which the page calls ${name} is noticed 240 s after the ping`, async (t) => {
    const { page, manager } = openReady(t, { identity: "u-1" })
    await page.pass(25 * SECOND)
    assert.equal(pings(page.socket), 1)

    let seconds = 0
    for (; seconds < 3600 && manager.state === "open"; seconds++) {
      if (seconds % 100 === 0) call(manager)
      await page.pass(SECOND)
    }

    assert.equal(seconds, 240)
  })
}

test("a second wake, right after an answered ping, has 3 s of its own", (t) => {
  const { page, manager } = openReady(t)
  page.window.dispatch("online")
  pong(page)
  page.tick(SECOND)

  page.window.dispatch("online")

  assert.equal(pings(page.socket), 2)
  assert.equal(lifetime(page, manager), 3 * SECOND)
})
