import assert from "node:assert/strict"
import { test } from "node:test"

import { openPage, settled, tokens } from "./support.mjs"

const SECOND = 1000

function openManager(t, { isReady = true, token = null, options } = {}) {
  const page = openPage(t)
  const connection = page.connect("/ws/", token, options)
  page.socket?.accept()
  if (isReady) page.socket?.push({ key: "websocket.ready", identity: "u-1" })
  return { page, ...connection }
}

const isCall = ({ reply_key, type }) => reply_key && !type.startsWith("websocket.")
const lastKey = (page) => page.socket.sent.findLast(isCall).reply_key
const control = (page, type) => page.socket.sent.filter((message) => message.type === `websocket.${type}`)

/** The server's side of the stream that was opened last. */
function serverOf(page) {
  const { socket } = page
  const key = lastKey(page)
  return {
    key,
    part: (...values) => values.forEach((data) => socket.push({ key, data, more: true })),
    end: () => socket.push({ key, more: false }),
    fail: (error) => socket.push({ key, error }),
  }
}

/** Start to read a stream to its end. */
function reading(stream) {
  const read = { parts: [], end: undefined }
  read.done = (async () => {
    try {
      for await (const part of stream) read.parts.push(part)
      read.end = "done"
    } catch (error) {
      read.end = error.code ?? error.message
    }
  })()
  return read
}

async function take(stream, count) {
  for (let n = 0; n < count; n++) await stream.next()
}

const range = (count) => [...Array(count).keys()]

test("a stream is sent at once, with a reply_key and credit for 64 parts", (t) => {
  const { page, manager } = openManager(t)
  const message = Object.freeze({ type: "count", to: 3 })

  manager.stream(message)

  const [{ reply_key, ...rest }] = page.socket.sent
  assert.deepEqual(rest, { type: "count", to: 3, credit: 64 })
  assert.match(reply_key, /^[A-Za-z0-9_.:-]{1,64}$/)
})

test("the parts come in order, and the last message ends the loop", async (t) => {
  const { page, manager, errors } = openManager(t)
  const read = reading(manager.stream({ type: "count" }))
  const server = serverOf(page)

  server.part(0, 1)
  await settled()
  assert.deepEqual(read.parts, [0, 1])
  server.part(2)
  server.end()
  await read.done

  assert.deepEqual(read.parts, [0, 1, 2])
  assert.equal(read.end, "done")
  assert.deepEqual(errors, [])
  assert.deepEqual(control(page, "cancel"), [])
})

const bodies = [
  [{}, {}],
  [{ a: 1 }, { a: 1 }],
  [{ data: 5 }, 5],
  [{ data: null }, null],
  [{ data: { key: "mine", more: false, error: "mine" } }, { key: "mine", more: false, error: "mine" }],
  [{ data: 1, a: 2 }, { data: 1, a: 2 }],
]

for (const [body, value] of bodies) {
  test(`a part ${JSON.stringify(body)} gives ${JSON.stringify(value)} to stream() and handler`, async (t) => {
    const { page, manager } = openManager(t)
    const handled = []
    manager.sendJSON({ type: "count" }, (part) => handled.push(part))
    const read = reading(manager.stream({ type: "count" }))

    for (const { reply_key: key } of [...page.socket.sent]) {
      page.socket.push({ key, ...body, more: true })
      page.socket.push({ key, more: false })
    }
    await read.done

    assert.deepEqual(read.parts, [value])
    assert.deepEqual(handled, [value])
    assert.equal(read.end, "done")
  })
}

test("a method that does not stream gives its reply as the one part", async (t) => {
  const { page, manager } = openManager(t)
  const read = reading(manager.stream({ type: "answer" }))

  page.socket.push({ key: lastKey(page), data: 42 })
  await read.done

  assert.deepEqual([read.parts, read.end], [[42], "done"])
})

test("an empty stream ends at once", async (t) => {
  const { page, manager } = openManager(t)
  const read = reading(manager.stream({ type: "count" }))

  serverOf(page).end()
  await read.done

  assert.deepEqual([read.parts, read.end], [[], "done"])
})

test("an error of the server comes after the parts before it, with its id", async (t) => {
  const { page, manager, errors } = openManager(t)
  const stream = manager.stream({ type: "count" })
  const server = serverOf(page)
  server.part(0)
  server.fail({ code: "internal", message: "Something broke", id: "e-1" })

  assert.deepEqual(await stream.next(), { value: 0, done: false })
  await assert.rejects(stream.next(), { name: "WebSocketManagerError", code: "internal", id: "e-1" })
  assert.deepEqual(await stream.next(), { value: undefined, done: true })
  assert.deepEqual(errors, [])
  assert.deepEqual(control(page, "cancel"), [])
})

/** A manager whose stream is sent, but whose server has not sent websocket.ready yet. */
function openStream(t) {
  const { page, manager } = openManager(t, { isReady: false, options: { identity: "u-1" } })
  const controller = new AbortController()
  const stream = manager.stream({ type: "count" }, { signal: controller.signal })
  page.tick(SECOND)
  return { page, manager, controller, stream }
}

const endings = {
  disconnected: ({ page }) => page.socket.drop(),
  closed: ({ manager }) => manager.close(),
  user_changed: ({ page }) => page.socket.push({ key: "websocket.ready", identity: "u-2" }),
  aborted: ({ controller }) => controller.abort(),
}

for (const [code, end] of Object.entries(endings)) {
  test(`a stream that ends as ${code} first gives the arrived parts, then throws, then is done`, async (t) => {
    const { stream, ...opened } = openStream(t)
    serverOf(opened.page).part(0, 1)
    end(opened)

    assert.deepEqual(await stream.next(), { value: 0, done: false })
    assert.deepEqual(await stream.next(), { value: 1, done: false })
    await assert.rejects(stream.next(), { code })
    assert.deepEqual(await stream.next(), { value: undefined, done: true })
    assert.deepEqual(await stream.next(), { value: undefined, done: true })
  })

  test(`a waiting reader gets ${code}`, async (t) => {
    const { stream, ...opened } = openStream(t)
    const read = reading(stream)
    await settled()
    end(opened)
    await read.done

    assert.equal(read.end, code)
  })

  test(`${code} of a stream without a reader is no unhandled rejection`, async (t) => {
    const escaped = []
    const note = (error) => escaped.push(error)
    process.on("unhandledRejection", note)
    t.after(() => process.off("unhandledRejection", note))
    end(openStream(t))
    await settled()
    await settled()

    assert.deepEqual(escaped, [])
  })
}

for (const [name, code, prepare] of [
  ["on a closed manager", "closed", ({ manager }) => manager.close()],
  ["with an aborted signal", "aborted", () => AbortSignal.abort()],
  ["with a full queue", "overflow", ({ page, manager }) => {
    page.socket.readyState = 2
    for (let n = 0; n < 100; n++) manager.sendJSON({ type: "a" })
  }],
]) {
  test(`a stream ${name} fails with ${code} for its reader only`, async (t) => {
    const { page, manager, errors } = openManager(t)
    const signal = prepare({ page, manager })
    errors.length = 0
    const sent = page.socket.sent.length

    const stream = manager.stream({ type: "count" }, { signal })
    await settled()

    await assert.rejects(stream.next(), { code })
    assert.deepEqual(await stream.next(), { value: undefined, done: true })
    assert.deepEqual(errors, [])
    assert.equal(page.socket.sent.length, sent)
  })
}

test("a message without a type is a TypeError of the reader", async (t) => {
  const { manager } = openManager(t)

  await assert.rejects(manager.stream({}).next(), { name: "TypeError", message: /type of the message/ })
})

// Leaving the loop

const leavings = {
  "break": async (stream) => {
    for await (const part of stream) if (part === 1) break
  },
  "an exception": async (stream) => {
    await assert.rejects(async () => {
      for await (const part of stream) throw new Error(part)
    })
  },
  "return() without reading": async (stream) => assert.deepEqual(await stream.return("mine"), { value: "mine", done: true }),
  "throw() without reading": (stream) => assert.rejects(stream.throw(new Error("mine")), { message: "mine" }),
  "return() between two parts": async (stream) => {
    await stream.next()
    await stream.return()
  },
  "return() while next() waits": async (stream) => {
    await take(stream, 3)
    const waiting = stream.next()
    await settled()
    await stream.return()
    assert.deepEqual(await waiting, { value: undefined, done: true })
  },
  "throw() while next() waits": async (stream) => {
    await take(stream, 3)
    const waiting = stream.next()
    await settled()
    await assert.rejects(stream.throw(new Error("mine")), { message: "mine" })
    assert.deepEqual(await waiting, { value: undefined, done: true })
  },
}

for (const [way, leave] of Object.entries(leavings)) {
  test(`leaving by ${way} cancels once on the server, and later parts are ignored`, async (t) => {
    const { page, manager, errors } = openManager(t)
    const stream = manager.stream({ type: "count" })
    const server = serverOf(page)
    server.part(0, 1, 2)

    await leave(stream)
    await stream.return()
    server.part(3)
    server.fail({ code: "internal" })

    assert.deepEqual(control(page, "cancel"), [{ type: "websocket.cancel", reply_key: server.key }])
    assert.deepEqual(await stream.next(), { value: undefined, done: true })
    assert.deepEqual(errors, [])
    page.tick(10 * SECOND)
    assert.ok(page.timers.size <= 1)
  })
}

test("leaving a stream that has ended, or whose connection is lost, cancels nothing", async (t) => {
  const { page, manager } = openManager(t, { options: { identity: "u-1" } })
  const ended = manager.stream({ type: "count" })
  serverOf(page).end()
  await ended.return()
  const lost = manager.stream({ type: "count" })
  page.socket.drop()
  page.tick(1700)
  page.socket.accept()
  page.socket.push({ key: "websocket.ready", identity: "u-1" })
  await lost.return()

  assert.deepEqual(page.sockets.flatMap((socket) => socket.sent.map(({ type }) => type)), ["count", "count"])
})

test("leaving a stream that was not sent removes it from the queue", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  const stream = manager.stream({ type: "count" })
  await stream.return()

  page.socket.accept()
  page.socket.push({ key: "websocket.ready" })

  assert.deepEqual(page.socket.sent, [])
})

test("a left stream has no listener on its signal", async (t) => {
  const { manager } = openManager(t)
  const { signal } = new AbortController()
  const removed = t.mock.method(signal, "removeEventListener")

  await manager.stream({ type: "count" }, { signal }).return()

  assert.equal(removed.mock.callCount(), 1)
})

test("simultaneous next() calls get one part each, in order, and the others are done", async (t) => {
  const { page, manager } = openManager(t)
  const stream = manager.stream({ type: "count" })
  const answers = [stream.next(), stream.next(), stream.next(), stream.next()]
  const server = serverOf(page)
  server.part("a", "b")
  server.end()

  assert.deepEqual(await Promise.all(answers), [
    { value: "a", done: false },
    { value: "b", done: false },
    { value: undefined, done: true },
    { value: undefined, done: true },
  ])
})

test("a part that is falsy or looks like a promise is not changed", async (t) => {
  const { page, manager } = openManager(t)
  const read = reading(manager.stream({ type: "count" }))
  const server = serverOf(page)
  server.part(0, "", false, null, { then: 1 })
  server.end()
  await read.done

  assert.deepEqual(read.parts, [0, "", false, null, { then: 1 }])
})

// Credit

test("a reader adds credit for 32 parts when it has taken 32, and none before", async (t) => {
  const { page, manager } = openManager(t)
  const stream = manager.stream({ type: "count" })
  const server = serverOf(page)
  server.part(...range(64))
  await settled()
  assert.deepEqual(control(page, "more"), [])

  await take(stream, 31)
  assert.deepEqual(control(page, "more"), [])
  await take(stream, 1)

  const grant = { type: "websocket.more", reply_key: server.key, parts: 32 }
  assert.deepEqual(control(page, "more"), [grant])
  await take(stream, 32)
  assert.deepEqual(control(page, "more"), [grant, grant])
})

test("10,000 parts of a server that uses only its credit arrive complete and in order", async (t) => {
  const { page, manager } = openManager(t)
  const read = reading(manager.stream({ type: "count" }))
  const server = serverOf(page)
  let next = 0
  let ahead = 0
  while (next < 10000) {
    const granted = control(page, "more").reduce((sum, { parts }) => sum + parts, 64)
    if (next < granted) server.part(next++)
    else await settled()
    ahead = Math.max(ahead, next - read.parts.length)
  }
  server.end()
  await read.done

  assert.deepEqual(read.parts, range(10000))
  assert.equal(ahead, 64)
})

test("a handler is called for each part, and credit is added meanwhile", (t) => {
  const { page, manager, errors } = openManager(t)
  const handled = []
  manager.sendJSON({ type: "count" }, (part) => handled.push(part))
  assert.equal(page.socket.sent[0].credit, 64)
  const server = serverOf(page)

  server.part(...range(31))
  assert.deepEqual(control(page, "more"), [])
  server.part(31)
  assert.deepEqual(control(page, "more"), [{ type: "websocket.more", reply_key: server.key, parts: 32 }])
  page.tick(20 * SECOND)
  server.part(32)
  server.end()
  server.part(33)

  assert.deepEqual(handled, range(33))
  assert.deepEqual(errors, [])
})

test("no credit is added to a stream that has ended", async (t) => {
  const { page, manager } = openManager(t)
  const stream = manager.stream({ type: "count" })
  const server = serverOf(page)
  server.part(...range(40))
  server.end()

  await take(stream, 41)

  assert.deepEqual(control(page, "more"), [])
})

test("each error of a part handler is reported and ends nothing", (t) => {
  const { page, manager, codes } = openManager(t)
  let calls = 0
  manager.sendJSON({ type: "count" }, () => {
    calls++
    throw new Error("mine")
  })
  const server = serverOf(page)
  server.part(0, 1)
  server.end()

  assert.equal(calls, 2)
  assert.deepEqual(codes(), ["handler_failed", "handler_failed"])
})

for (const act of ["close", "reconnect"]) {
  test(`${act}() from inside a part handler sends nothing more on that connection`, (t) => {
    const { page, manager } = openManager(t)
    const [socket] = page.sockets
    let calls = 0
    manager.sendJSON({ type: "count" }, () => ++calls === 32 && manager[act]())
    serverOf(page).part(...range(40))

    assert.equal(calls, 32)
    assert.deepEqual(socket.sent.map(({ type }) => type), ["count"])
  })
}

// Plain consumers

test("a plain consumer receives no credit and no cancel, and its parts arrive without limit", async (t) => {
  const { page, manager, codes } = openManager(t, { isReady: false })
  const handled = []
  manager.sendJSON({ type: "count" }, (part) => handled.push(part))
  const handlerKey = lastKey(page)
  const read = reading(manager.stream({ type: "count" }))
  await page.pass(SECOND)
  const server = serverOf(page)
  server.part(...range(100))
  for (const data of range(100)) page.socket.push({ key: handlerKey, data, more: true })
  await settled()
  assert.equal(read.parts.length, 100)
  const left = manager.stream({ type: "left" })
  await left.return()
  const request = assert.rejects(manager.request({ type: "count" }), { code: "stream" })
  serverOf(page).part(0)
  await request

  assert.equal(handled.length, 100)
  assert.deepEqual(codes(), [])
  assert.deepEqual(page.socket.sent.map(({ reply_key, ...rest }) => rest), [
    { type: "count" },
    { type: "count" },
    { type: "left" },
    { type: "count" },
  ])
})

test("a stream sent before websocket.ready gets no credit, but is cancelled after it", async (t) => {
  const { page, manager } = openManager(t, { isReady: false })
  const stream = manager.stream({ type: "count" })
  await page.pass(SECOND)
  const server = serverOf(page)
  page.socket.push({ key: "websocket.ready" })
  server.part(...range(64))
  await take(stream, 64)
  await stream.return()

  assert.equal("credit" in page.socket.sent[0], false)
  assert.deepEqual(control(page, "more"), [])
  assert.equal(control(page, "cancel").length, 1)
})

test("a stream waits for websocket.ready to get credit, and later messages wait behind it", (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  manager.stream({ type: "count" })
  assert.equal(manager.sendJSON({ type: "after" }), false)
  page.socket.accept()
  assert.deepEqual(page.socket.sent, [])
  assert.equal(manager.sendJSON({ type: "last" }), false)

  page.socket.push({ key: "websocket.ready" })

  assert.deepEqual(page.socket.sent.map(({ type, credit }) => [type, credit]), [
    ["count", 64],
    ["after", undefined],
    ["last", undefined],
  ])
})

test("the messages behind a waiting stream are an ordinary queue", (t) => {
  const { page, manager } = openManager(t, { isReady: false })
  manager.stream({ type: "count" })
  for (let n = 0; n < 99; n++) assert.equal(manager.sendJSON({ type: "a" }), false)

  assert.throws(() => manager.sendJSON({ type: "a" }), { code: "overflow" })
  page.socket.push({ key: "websocket.ready" })
  assert.equal(page.socket.sent.length, 100)
})

test("a stream waits for websocket.ready at most 1 s after the open", (t) => {
  const { page, manager } = openManager(t, { isReady: false })
  page.tick(600)
  manager.stream({ type: "count" })
  page.tick(399)
  assert.deepEqual(page.socket.sent, [])
  page.tick(1)
  assert.equal(page.socket.sent.length, 1)
  manager.stream({ type: "count" })

  assert.equal(page.socket.sent.length, 2)
})

// request() of a stream

test("request() of a method that streams is rejected as stream, and the stream is cancelled", async (t) => {
  const { page, manager } = openManager(t)
  const rejected = assert.rejects(manager.request({ type: "count" }), { code: "stream", message: /use stream\(\)/ })
  assert.equal("credit" in page.socket.sent[0], false)
  const server = serverOf(page)
  server.part(0)
  server.part(1)
  await rejected

  assert.deepEqual(control(page, "cancel"), [{ type: "websocket.cancel", reply_key: server.key }])
})

test("request() of a stream without a part is rejected as stream", async (t) => {
  const { page, manager } = openManager(t)
  const rejected = assert.rejects(manager.request({ type: "count" }), { code: "stream" })

  serverOf(page).end()

  await rejected
})

test("`more` with another value than true or false is part of a reply", async (t) => {
  const { page, manager } = openManager(t)
  const promise = manager.request({ type: "page" })

  page.socket.push({ key: lastKey(page), items: [], more: "/page/2" })

  assert.deepEqual(await promise, { items: [], more: "/page/2" })
})

test("a call that its caller ends is cancelled on the server", async (t) => {
  const { page, manager } = openManager(t)
  const controller = new AbortController()
  manager.request({ type: "a" }, { timeout: 100 }).catch(() => {})
  manager.request({ type: "b" }, { signal: controller.signal }).catch(() => {})
  manager.sendJSON({ type: "c" }, () => {})
  manager.sendJSON({ type: "d" })
  const [a, b, c] = page.socket.sent.map(({ reply_key }) => reply_key)

  page.tick(100)
  controller.abort()
  page.tick(10 * SECOND)

  assert.deepEqual(control(page, "cancel").map(({ reply_key }) => reply_key), [a, b, c])
})

// Time limits

test("a stream has no time limit by default, a handler has one for the first part only", async (t) => {
  const { page, manager, codes } = openManager(t, { isReady: false })
  const handled = []
  manager.sendJSON({ type: "count" }, (part) => handled.push(part))
  const handlerKey = lastKey(page)
  page.tick(9 * SECOND)
  page.socket.push({ key: handlerKey, data: 0, more: true })
  const read = reading(manager.stream({ type: "count" }))
  await page.pass(3600 * SECOND)
  serverOf(page).part(1)
  page.socket.push({ key: handlerKey, data: 2, more: true })
  await settled()

  assert.deepEqual(read.parts, [1])
  assert.deepEqual(handled, [0, 2])
  assert.deepEqual(codes(), [])
})

test("if the first part for a handler does not come in 10 s, the call times out and is cancelled", (t) => {
  const { page, manager, codes } = openManager(t)
  manager.sendJSON({ type: "count" }, () => {})

  page.tick(10 * SECOND)

  assert.deepEqual(codes(), ["timeout"])
  assert.equal(control(page, "cancel").length, 1)
})

test("timeout counts from part to part while the reader waits", async (t) => {
  const { page, manager } = openManager(t)
  const read = reading(manager.stream({ type: "count" }, { timeout: SECOND }))
  const server = serverOf(page)
  for (const n of range(3)) {
    await page.pass(SECOND - 1)
    server.part(n)
    await settled()
  }
  await page.pass(SECOND - 1)
  assert.equal(read.end, undefined)
  await page.pass(1)

  assert.deepEqual(read.parts, [0, 1, 2])
  assert.equal(read.end, "timeout")
  assert.equal(control(page, "cancel").length, 1)
})

test("timeout does not count while the reader is busy and the server has credit", async (t) => {
  const { page, manager } = openManager(t)
  const stream = manager.stream({ type: "count" }, { timeout: SECOND })
  await page.pass(60 * SECOND - 1)
  page.socket.push({ key: "websocket.pong" })
  const server = serverOf(page)
  server.part(0)
  assert.deepEqual(await stream.next(), { value: 0, done: false })
  await page.pass(20 * SECOND)

  const waiting = stream.next()
  await page.pass(SECOND - 1)
  server.part(1)

  assert.deepEqual(await waiting, { value: 1, done: false })
})

test("timeout ends a stream whose reader takes nothing while the server has no credit", async (t) => {
  const { page, manager } = openManager(t)
  const stream = manager.stream({ type: "count" }, { timeout: SECOND })
  const server = serverOf(page)
  server.part(...range(63))
  await page.pass(5 * SECOND)
  assert.deepEqual(control(page, "cancel"), [])
  server.part(63)
  await page.pass(SECOND - 1)
  await take(stream, 1)
  await page.pass(SECOND - 1)
  assert.deepEqual(control(page, "cancel"), [], "taking a part restarts the time limit")
  await page.pass(1)

  assert.equal(control(page, "cancel").length, 1)
  await take(stream, 63)
  await assert.rejects(stream.next(), { code: "timeout" })
})

// The queue

test("a queued stream is sent with the queue, with credit if the new connection supports it", async (t) => {
  const { page, manager } = openManager(t, { options: { identity: "u-1" } })
  page.socket.drop()
  const read = reading(manager.stream({ type: "count" }))
  page.tick(1700)
  page.socket.accept()
  page.socket.push({ key: "websocket.ready", identity: "u-1" })
  const server = serverOf(page)
  server.part(1)
  server.end()
  await read.done

  assert.equal(page.socket.sent[0].credit, 64)
  assert.deepEqual([read.parts, read.end], [[1], "done"])
})

test("a stream that waits 60 s in the queue times out, and is never sent", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect("/ws/", tokens("u-1"))
  const read = reading(manager.stream({ type: "count" }))
  for (let second = 0; second < 60; second++) {
    if (page.socket?.readyState === 0) page.socket.drop()
    await page.pass(SECOND)
  }
  await read.done
  manager.reconnect()
  await settled()
  page.socket.accept()

  assert.equal(read.end, "timeout")
  assert.deepEqual(page.socket.sent, [])
})

test("a stream's own timeout counts in the queue too, while its reader waits", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  const read = reading(manager.stream({ type: "count" }, { timeout: 500 }))
  await page.pass(500)
  await read.done

  assert.equal(read.end, "timeout")
})

test("a queued stream of an unknown user is disconnected, and never sent", async (t) => {
  const { page, manager } = openManager(t, { isReady: false })
  page.socket.drop()
  const read = reading(manager.stream({ type: "count" }))
  page.tick(1700)
  page.socket.accept()
  await read.done

  assert.equal(read.end, "disconnected")
  page.tick(2 * SECOND)
  assert.deepEqual(page.socket.sent, [])
})

test("freeze and pagehide end a stream as disconnected", async (t) => {
  for (const leave of [(page) => page.document.dispatch("freeze"), (page) => page.window.dispatch("pagehide")]) {
    const { page, manager } = openManager(t)
    const read = reading(manager.stream({ type: "count" }))
    leave(page)
    await read.done

    assert.equal(read.end, "disconnected")
    assert.equal(page.socket.readyState, 2)
    manager.close()
    t.mock.timers.reset()
  }
})

test("the parts of a stream go to no listener and to no other call", async (t) => {
  const { page, manager } = openManager(t)
  const received = []
  const one = reading(manager.stream({ type: "count" }))
  const first = serverOf(page)
  const two = reading(manager.stream({ type: "count" }))
  const second = serverOf(page)
  manager.addMessageListener(first.key, (message) => received.push(message))
  first.part("a")
  second.part("b")
  second.end()
  first.part("c")
  first.end()
  await Promise.all([one.done, two.done])

  assert.deepEqual(one.parts, ["a", "c"])
  assert.deepEqual(two.parts, ["b"])
  assert.deepEqual(received, [])
})

test("a slow reader of a stream without credit has no time limit", async (t) => {
  const { page, manager } = openManager(t, { isReady: false })
  page.tick(SECOND)
  const stream = manager.stream({ type: "count" }, { timeout: SECOND })
  const server = serverOf(page)
  server.part(...range(64))
  await page.pass(SECOND)
  server.part(...range(6))
  server.end()
  const read = reading(stream)
  await read.done

  assert.deepEqual([read.parts.length, read.end], [70, "done"])
})

test("timeout ends a stream whose reader takes nothing at all", async (t) => {
  const { page, manager } = openManager(t)
  const stream = manager.stream({ type: "count" }, { timeout: SECOND })
  serverOf(page).part(...range(64))
  await page.pass(SECOND)

  assert.equal(control(page, "cancel").length, 1)
  const read = reading(stream)
  await read.done
  assert.deepEqual([read.parts.length, read.end], [64, "timeout"])
})

test("timeout does not count while a reader that has waited before is busy", async (t) => {
  const { page, manager } = openManager(t)
  const stream = manager.stream({ type: "count" }, { timeout: SECOND })
  const server = serverOf(page)
  const first = stream.next()
  server.part(1)
  assert.equal((await first).value, 1)

  await page.pass(5 * SECOND)
  server.part(2)
  server.end()
  const read = reading(stream)
  await read.done

  assert.deepEqual([read.parts, read.end], [[2], "done"])
})
