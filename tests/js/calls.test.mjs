import assert from "node:assert/strict"
import { test } from "node:test"

import { openPage, settled, tokens, WebSocketManager } from "./support.mjs"

const { WebSocketManagerError } = WebSocketManager

function openManager(t, options) {
  const page = openPage(t)
  const connection = page.connect("/ws/", null, options)
  page.socket.accept()
  // With options.identity the manager waits 1 s for websocket.ready.
  if (options?.identity) page.tick(1000)
  return { page, ...connection }
}

/** Return a list that receives the result of a promise. */
function ending(promise) {
  const ends = []
  promise.then(
    (value) => ends.push({ value }),
    (error) => ends.push({ code: error.code ?? error.name, error }),
  )
  return ends
}

test("sendJSON() returns true for a sent message, false for a queued one", (t) => {
  const page = openPage(t)
  const { manager } = page.connect()

  assert.equal(manager.sendJSON({ type: "a" }), false)
  page.socket.accept()
  assert.equal(manager.sendJSON({ type: "b" }), true)
  page.socket.drop()
  assert.equal(manager.sendJSON({ type: "c" }), false)
  assert.deepEqual(page.socket.sent, [{ type: "a" }, { type: "b" }])
})

const half = "\u{1f600}".slice(0, 1)
const unreadable = {
  "in a text": { text: `a ${half} b` },
  "at the end of a text": { text: half },
  "of the second half": { text: "\u{1f600}".slice(1) },
  "in a key": { [half]: 1 },
  "deep inside": { rows: [{ names: ["ok", half] }] },
  "after a backslash": { text: `\\${half}` },
  "after two backslashes": { text: `\\\\${half}` },
  "in the type": { type: half },
  "of toJSON()": { text: { toJSON: () => half } },
}

for (const [where, fields] of Object.entries(unreadable)) {
  test(`a lone surrogate ${where} is refused at once and not sent`, async (t) => {
    const { page, manager, errors } = openManager(t)
    const message = { type: "a", ...fields }
    const refused = { name: "WebSocketManagerError", code: "bad_message", message: /Unicode/ }

    assert.throws(() => manager.sendJSON(message), refused)
    assert.throws(() => manager.sendJSON(message, () => {}), refused)
    await assert.rejects(manager.request(message), refused)
    await assert.rejects(manager.stream(message).next(), refused)

    page.socket.drop()
    assert.throws(() => manager.sendJSON(message), refused, "nor is it queued")
    assert.deepEqual(page.socket.sent, [])
    assert.deepEqual(errors, [])
    manager.close()
  })
}

test("pairs of surrogates, other characters and the text of an escape are sent unchanged", (t) => {
  const { page, manager } = openManager(t)
  const texts = ["\u{1f600}", "\ud7ff \ue000", "\\ud83d", "\\\\ud83d", "\u0000\u001f", "\\", "\\\\", "caf\u00e9"]
  const messages = texts.map((text) => ({ type: "a", text, [text]: [text] }))

  for (const message of messages) manager.sendJSON(message)

  assert.deepEqual(page.socket.sent, messages)
})

test("a message of a million backslashes is checked within a second", (t) => {
  const { page, manager } = openManager(t)
  const began = performance.now()

  manager.sendJSON({ type: "a", text: "\\".repeat(1_000_000) })
  manager.sendJSON({ type: "a", text: 'x\\"'.repeat(250_000) })

  assert.equal(page.socket.sent.length, 2)
  assert.ok(performance.now() - began < 1000)
})

test("a message during the close of a socket is queued", (t) => {
  const { page, manager } = openManager(t)
  page.socket.readyState = 2

  assert.equal(manager.sendJSON({ type: "a" }), false)
})

test("the queue is sent in order when the first connection opens", (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  manager.on("state", ({ state }) => state === "open" && manager.sendJSON({ type: "in the handler" }))
  manager.sendJSON({ type: "a" })
  manager.request({ type: "b" }).catch(() => {})
  manager.sendJSON({ type: "c" }, () => {})
  page.socket.drop()
  page.tick(1700)

  page.socket.accept()

  assert.deepEqual(page.socket.sent.map(({ type }) => type), ["a", "b", "c", "in the handler"])
  manager.close()
})

test("a message with a handler is copied with a reply_key, without one it has none", (t) => {
  const { page, manager } = openManager(t)
  const message = Object.freeze({ type: "a", n: 1 })

  manager.sendJSON(message)
  manager.sendJSON(message, () => {})

  const [plain, called] = page.socket.sent
  assert.deepEqual(plain, { type: "a", n: 1 })
  assert.deepEqual(Object.keys(called), ["type", "n", "reply_key"])
  assert.match(called.reply_key, /^[A-Za-z0-9_.:-]{1,64}$/)
  manager.close()
})

test("reply keys differ between messages, managers, tabs and reconnects", async (t) => {
  const page = openPage(t)
  const keys = new Set()
  const one = page.connect("/one/")
  const two = page.connect("/two/")
  for (let connection = 0; connection < 3; connection++) {
    for (const socket of page.sockets.slice(-2)) socket.accept()
    for (const { manager } of [one, two]) {
      for (let n = 0; n < 10; n++) manager.request({ type: "a" }).catch(() => {})
    }
    for (const socket of page.sockets.slice(-2)) {
      for (const message of socket.sent) keys.add(message.reply_key)
      socket.drop()
    }
    page.tick(4000)
  }
  assert.equal(keys.size, 60)

  // Another tab has the same counter, but another time or another random number.
  const [key] = keys
  page.random = () => 0.25
  const three = page.connect("/three/")
  page.socket.accept()
  three.manager.request({ type: "a" }).catch(() => {})
  assert.notEqual(page.socket.sent[0].reply_key.split(".")[0], key.split(".")[0])
  for (const { manager } of [one, two, three]) manager.close()
  await settled()
})

const replies = [
  [{}, {}],
  [{ a: 1, b: [2] }, { a: 1, b: [2] }],
  [{ data: 5 }, 5],
  [{ data: null }, null],
  [{ data: { data: 1 } }, { data: 1 }],
  [{ data: { key: "mine", error: "mine" } }, { key: "mine", error: "mine" }],
  [{ data: 1, a: 2 }, { data: 1, a: 2 }],
  [{ error: null }, { error: null }],
]

for (const [body, value] of replies) {
  test(`a reply ${JSON.stringify(body)} gives ${JSON.stringify(value)} to handler and request()`, async (t) => {
    const { page, manager } = openManager(t)
    const handled = []
    manager.sendJSON({ type: "a" }, (reply) => handled.push(reply))
    const promise = manager.request({ type: "a" })

    for (const { reply_key } of page.socket.sent) page.socket.push({ key: reply_key, ...body })

    assert.deepEqual(handled, [value])
    assert.deepEqual(await promise, value)
    page.tick(10000)
    assert.equal(page.timers.size, 0)
  })
}

test("an error reply rejects request() and goes to on(\"error\") for a handler", async (t) => {
  const { page, manager, errors } = openManager(t)
  const handled = []
  manager.sendJSON({ type: "a" }, (reply) => handled.push(reply))
  const promise = manager.request({ type: "a" })

  const fields = [{ loc: ["lines", 0], message: "Sold out" }]
  const error = { code: "internal", message: "Something broke", id: "e-1", fields }
  for (const { reply_key } of page.socket.sent) page.socket.push({ key: reply_key, error })

  await assert.rejects(promise, { name: "WebSocketManagerError", ...error })
  assert.deepEqual(handled, [])
  assert.equal(errors.length, 1)
  assert.ok(errors[0] instanceof WebSocketManagerError)
  assert.ok(errors[0] instanceof Error)
  assert.equal(errors[0].code, "internal")
  assert.equal(errors[0].id, "e-1")
  assert.deepEqual(errors[0].fields, fields)
})

test("an error without an id has none, and one without a code is internal", async (t) => {
  const { page, manager } = openManager(t)
  for (const [error, code] of [[{ code: "invalid", message: "no" }, "invalid"], [{}, "internal"], ["no", "internal"]]) {
    const ends = ending(manager.request({ type: "a" }))
    page.socket.push({ key: page.socket.sent.at(-1).reply_key, error })
    await settled()

    assert.equal(ends[0].code, code)
    assert.equal("id" in ends[0].error, false)
  }
})

test("websocket.error goes to on(\"error\") with its code, even a malformed one", (t) => {
  const { page, codes } = openManager(t)

  page.socket.push({ key: "websocket.error", type: "a", error: { code: "unknown_type", message: "no" } })
  page.socket.push({ key: "websocket.error", error: null })
  page.socket.push({ key: "websocket.error" })

  assert.deepEqual(codes(), ["unknown_type", "internal", "internal"])
})

test("a call ends once; late and unknown keys are ignored", async (t) => {
  const { page, manager, errors } = openManager(t)
  const handled = []
  manager.sendJSON({ type: "a" }, (reply) => handled.push(reply))
  const { reply_key } = page.socket.sent[0]

  page.socket.push({ key: reply_key, n: 1 })
  page.socket.push({ key: reply_key, n: 2 })
  page.socket.push({ key: reply_key, error: { code: "internal" } })
  page.socket.push({ key: "never-asked", n: 3 })
  page.socket.push({ no: "key" })
  page.tick(60000)

  assert.deepEqual(handled, [{ n: 1 }])
  assert.deepEqual(errors, [])
})

test("a message with the key of a queued call is no reply", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  page.socket.accept()
  page.socket.readyState = 2
  const ends = ending(manager.request({ type: "a" }))
  page.socket.readyState = 1
  const other = ending(manager.request({ type: "b" }))
  const [prefix, number] = page.socket.sent[0].reply_key.split(".")

  page.socket.push({ key: `${prefix}.${number - 1}`, n: 1 })
  await settled()

  assert.deepEqual(ends, [])
  assert.deepEqual(other, [])
  manager.close()
})

test("request() times out after 10 s, or after its own timeout, or never", async (t) => {
  const { page, manager } = openManager(t)
  const ordinary = ending(manager.request({ type: "a" }))
  const short = ending(manager.request({ type: "a" }, { timeout: 50 }))
  const endless = ending(manager.request({ type: "a" }, { timeout: Infinity }))

  await page.pass(50)
  assert.equal(short[0].code, "timeout")
  await page.pass(9949)
  assert.deepEqual(ordinary, [])
  await page.pass(1)
  assert.equal(ordinary[0].code, "timeout")
  await page.pass(3600000)
  assert.deepEqual(endless, [])
  manager.close()
})

test("a handler's timeout goes to on(\"error\")", (t) => {
  const { page, manager, codes } = openManager(t)
  manager.sendJSON({ type: "a" }, () => {})

  page.tick(10000)

  assert.deepEqual(codes(), ["timeout"])
})

test("a queued message that timed out or was aborted is never sent", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  const controller = new AbortController()
  const slow = ending(manager.request({ type: "slow" }, { timeout: 100 }))
  const left = ending(manager.request({ type: "left" }, { signal: controller.signal }))
  manager.sendJSON({ type: "kept" })

  await page.pass(100)
  controller.abort()
  page.socket.accept()
  await settled()

  assert.equal(slow[0].code, "timeout")
  assert.equal(left[0].code, "aborted")
  assert.deepEqual(page.socket.sent, [{ type: "kept" }])
})

test("aborting a sent request rejects it and its late reply is ignored", async (t) => {
  const { page, manager, errors } = openManager(t)
  const controller = new AbortController()
  const ends = ending(manager.request({ type: "a" }, { signal: controller.signal }))

  controller.abort()
  page.socket.push({ key: page.socket.sent[0].reply_key, n: 1 })
  await settled()

  assert.deepEqual(ends.map(({ code }) => code), ["aborted"])
  assert.deepEqual(errors, [])
})

test("a request with an aborted signal is not sent", async (t) => {
  const { page, manager } = openManager(t)

  await assert.rejects(manager.request({ type: "a" }, { signal: AbortSignal.abort() }), { code: "aborted" })

  assert.deepEqual(page.socket.sent, [])
})

test("a finished request has no listener on its signal", async (t) => {
  const { page, manager } = openManager(t)
  const { signal } = new AbortController()
  const removed = t.mock.method(signal, "removeEventListener")
  const promise = manager.request({ type: "a" }, { signal })

  page.socket.push({ key: page.socket.sent[0].reply_key })
  await promise

  assert.equal(removed.mock.callCount(), 1)
})

test("sent calls are rejected as disconnected when the connection is lost, and never sent again", async (t) => {
  const { page, manager, codes } = openManager(t, { identity: "u-1" })
  const ends = ending(manager.request({ type: "a" }))
  manager.sendJSON({ type: "b" }, () => {})

  page.socket.drop()
  await settled()
  assert.deepEqual(ends.map(({ code }) => code), ["disconnected"])
  assert.deepEqual(codes(), ["disconnected"])

  page.tick(1700)
  page.socket.accept()
  page.socket.push({ key: "websocket.ready", identity: "u-1" })
  assert.deepEqual(page.socket.sent, [])
})

test("a lost connection is no error for a sent message without a handler", (t) => {
  const { page, manager, errors } = openManager(t)
  manager.sendJSON({ type: "a" })

  page.socket.drop()
  manager.close()

  assert.deepEqual(errors, [])
})

test("sent calls are disconnected when a close code stops the manager", async (t) => {
  const { page, manager } = openManager(t)
  const ends = ending(manager.request({ type: "a" }))

  page.socket.drop(1000)
  await settled()

  assert.deepEqual(ends.map(({ code }) => code), ["disconnected"])
})

test("reconnect() rejects sent calls and keeps the queue", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  manager.sendJSON({ type: "queued" })
  manager.reconnect()
  page.socket.accept()
  assert.deepEqual(page.socket.sent, [{ type: "queued" }])

  const ends = ending(manager.request({ type: "a" }))
  manager.reconnect()
  await settled()
  assert.deepEqual(ends.map(({ code }) => code), ["disconnected"])
})

test("close() rejects sent and queued calls as closed", async (t) => {
  const { page, manager, codes } = openManager(t)
  const sent = ending(manager.request({ type: "a" }))
  page.socket.readyState = 2
  const queued = ending(manager.request({ type: "b" }))
  manager.sendJSON({ type: "c" })

  manager.close()
  await settled()

  assert.equal(sent[0].code, "closed")
  assert.equal(queued[0].code, "closed")
  assert.deepEqual(codes(), ["closed"])
})

test("after close() nothing is dropped silently: sendJSON() throws and request() rejects", async (t) => {
  const { manager } = openManager(t)
  manager.close()

  assert.throws(() => manager.sendJSON({ type: "a" }), { name: "WebSocketManagerError", code: "closed" })
  await assert.rejects(manager.request({ type: "a" }), { code: "closed" })
})

test("a listener of the closed state may reconnect and send", (t) => {
  const { page, manager } = openManager(t)
  manager.on("state", ({ state }) => {
    if (state !== "closed") return
    manager.reconnect()
    manager.sendJSON({ type: "again" })
  })

  page.socket.drop(4403)
  page.tick(1000)

  assert.equal(manager.state, "connecting")
  assert.equal(page.sockets.length, 2)
})

test("of 100,000 messages while offline 100 are queued and the others fail with overflow", (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  let overflows = 0
  for (let n = 0; n < 100000; n++) {
    try {
      assert.equal(manager.sendJSON({ type: "a", n }), false)
    } catch (error) {
      assert.ok(error instanceof WebSocketManagerError)
      assert.equal(error.code, "overflow")
      overflows++
    }
  }

  page.socket.accept()

  assert.equal(overflows, 99900)
  assert.deepEqual(page.socket.sent.map(({ n }) => n), [...Array(100).keys()])
})

test("calls that wait for a reply do not count in the queue", async (t) => {
  const { page, manager } = openManager(t)
  for (let n = 0; n < 150; n++) manager.request({ type: "a" }).catch(() => {})
  page.socket.readyState = 2

  for (let n = 0; n < 100; n++) assert.equal(manager.sendJSON({ type: "b" }), false)
  assert.throws(() => manager.sendJSON({ type: "b" }), { code: "overflow" })
  manager.close()
})

test("the queue holds 1 MiB, counted in bytes of UTF-8", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  const text = "\u20ac".repeat(170000) // 510,000 bytes

  manager.sendJSON({ type: "a", text })
  manager.sendJSON({ type: "b", text })
  assert.throws(() => manager.sendJSON({ type: "c", text }), { code: "overflow" })
  await assert.rejects(manager.request({ type: "c", text }), { code: "overflow" })
  manager.sendJSON({ type: "d" })
  page.socket.accept()

  assert.deepEqual(page.socket.sent.map(({ type }) => type), ["a", "b", "d"])
})

test("a queued call that ends leaves the queue", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  for (let n = 0; n < 100; n++) manager.request({ type: "a" }, { timeout: 100 }).catch(() => {})
  assert.throws(() => manager.sendJSON({ type: "b" }), { code: "overflow" })

  await page.pass(100)

  assert.equal(manager.sendJSON({ type: "b" }), false)
})

test("a message that waits for 60 s in the queue times out and is never sent", async (t) => {
  const page = openPage(t)
  const { manager, codes } = page.connect()
  manager.sendJSON({ type: "a" })
  const ends = ending(manager.request({ type: "b" }, { timeout: 600000 }))

  for (let second = 0; second < 60; second++) {
    if (page.socket.readyState === 0) page.socket.drop()
    await page.pass(1000)
  }
  assert.deepEqual(codes(), ["timeout"])
  assert.equal(ends[0].code, "timeout")

  manager.reconnect()
  page.socket.accept()
  assert.deepEqual(page.socket.sent, [])
})

test("a request has its own time limit after it leaves the queue", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  const ends = ending(manager.request({ type: "a" }, { timeout: 90000 }))
  page.socket.accept()

  await page.pass(89999)
  assert.deepEqual(ends, [])
  await page.pass(1)
  assert.equal(ends[0].code, "timeout")
})

for (const [slept, sent, reported] of [[15000, ["message"], []], [65000, [], ["timeout"]]]) {
  test(`after a sleep of ${slept} ms only messages that are not too old are sent`, async (t) => {
    const page = openPage(t)
    const { manager, codes } = page.connect()
    manager.sendJSON({ type: "message" })
    const ends = ending(manager.request({ type: "request" }))
    page.sleep(slept)

    page.socket.accept()
    await settled()

    assert.deepEqual(page.socket.sent.map(({ type }) => type), sent)
    assert.deepEqual(codes(), reported)
    assert.equal(ends[0].code, "timeout")
  })
}

test("a message must be an object with a string type", async (t) => {
  const { page, manager } = openManager(t)
  const wrong = [undefined, null, 7, "type", [], {}, { type: 7 }, { type: null }]
  for (const message of wrong) {
    assert.throws(() => manager.sendJSON(message), { name: "TypeError", message: /type of the message/ })
    await assert.rejects(manager.request(message), { name: "TypeError" })
  }
  assert.throws(() => manager.sendJSON({ type: "a" }, "handler"), { name: "TypeError", message: /replyHandler/ })

  const circular = { type: "a" }
  circular.self = circular
  assert.throws(() => manager.sendJSON(circular, () => {}), TypeError)
  assert.deepEqual(page.socket.sent, [])
  assert.equal(page.timers.size, 0)
})

test("an error of a reply handler goes to on(\"error\") and affects nothing else", (t) => {
  const { page, manager, errors } = openManager(t)
  const cause = new Error("mine")
  manager.sendJSON({ type: "a" }, () => {
    throw cause
  })

  page.socket.push({ key: page.socket.sent[0].reply_key })

  assert.equal(errors[0].code, "handler_failed")
  assert.equal(errors[0].cause, cause)
  assert.equal(manager.state, "open")
})

const texts = ["", "{", "null", "7", '"text"', "[]", "NaN", "[".repeat(100000)]
const badFrames = [...texts, new ArrayBuffer(4), new Blob(["{}"]), undefined]

for (const data of badFrames) {
  test(`a message ${String(data).slice(0, 30)} is reported as bad_message and affects nothing else`, (t) => {
    const { page, manager, codes } = openManager(t)
    const pushed = []
    manager.addMessageListener("news", (message) => pushed.push(message))

    page.socket.onmessage({ data })
    page.socket.push({ key: "news" })

    assert.deepEqual(codes(), ["bad_message"])
    assert.equal(pushed.length, 1)
  })
}

// A socket whose buffer is full

const MIB = 1048576

test("messages are queued while the socket holds over 1 MiB, and sent in order afterwards", (t) => {
  const { page, manager } = openManager(t)
  page.socket.bufferedAmount = MIB
  assert.equal(manager.sendJSON({ type: "a" }), true)
  page.socket.bufferedAmount = MIB + 1
  assert.equal(manager.sendJSON({ type: "b" }), false)
  manager.request({ type: "c" }).catch(() => {})
  page.tick(5000)
  assert.deepEqual(page.socket.sent.map(({ type }) => type), ["a"])

  page.socket.bufferedAmount = MIB
  page.tick(100)

  assert.deepEqual(page.socket.sent.map(({ type }) => type), ["a", "b", "c"])
  page.tick(10000)
  assert.equal(page.timers.size, 0)
})

test("a message right after the socket has drained is sent after the queue", (t) => {
  const { page, manager } = openManager(t)
  page.socket.bufferedAmount = 2 * MIB
  manager.sendJSON({ type: "a" })
  page.socket.bufferedAmount = 0

  assert.equal(manager.sendJSON({ type: "b" }), true)
  assert.deepEqual(page.socket.sent.map(({ type }) => type), ["a", "b"])
})

test("the queue of a full socket has the limits 100 messages and 60 s", async (t) => {
  const { page, manager, codes } = openManager(t)
  page.socket.bufferedAmount = 2 * MIB
  for (let n = 0; n < 100; n++) assert.equal(manager.sendJSON({ type: "a" }), false)
  assert.throws(() => manager.sendJSON({ type: "a" }), { code: "overflow" })

  page.tick(59999)
  assert.deepEqual(codes(), [])
  page.tick(1)

  assert.equal(codes().length, 100)
  page.socket.bufferedAmount = 0
  page.tick(1000)
  assert.deepEqual(page.socket.sent, [])
})

test("sending the queue fills the socket to at most 1 MiB", (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  for (const type of ["a", "b", "c"]) manager.sendJSON({ type })
  const { socket } = page
  const send = socket.send.bind(socket)
  socket.send = (message) => {
    send(message)
    socket.bufferedAmount += 600000
  }

  socket.accept()
  assert.deepEqual(socket.sent.map(({ type }) => type), ["a", "b"])
  socket.bufferedAmount = 0
  page.tick(100)

  assert.deepEqual(socket.sent.map(({ type }) => type), ["a", "b", "c"])
})

test("a call that ends before it is sent is not cancelled on the server", async (t) => {
  const { page, manager } = openManager(t)
  page.socket.push({ key: "websocket.ready" })
  page.socket.bufferedAmount = 2 * MIB
  const controller = new AbortController()
  const aborted = ending(manager.request({ type: "a" }, { signal: controller.signal }))
  const late = ending(manager.request({ type: "b" }, { timeout: 100 }))
  controller.abort()
  await page.pass(100)
  page.socket.bufferedAmount = 0
  await page.pass(100)

  assert.deepEqual([aborted[0].code, late[0].code], ["aborted", "timeout"])
  assert.deepEqual(page.socket.sent, [])
})

test("close() leaves no timer while the socket is full", (t) => {
  const { page, manager } = openManager(t)
  page.socket.bufferedAmount = 2 * MIB
  manager.sendJSON({ type: "a" })

  manager.close()

  assert.equal(page.timers.size, 0)
})

test("a message is not sent after 60 s, even if its timer is late", (t) => {
  const { page, manager, codes } = openManager(t)
  page.socket.bufferedAmount = 2 * MIB
  manager.sendJSON({ type: "old" })
  page.sleep(61000)
  page.socket.bufferedAmount = 0
  manager.sendJSON({ type: "new" })
  page.tick(0)

  assert.deepEqual(page.socket.sent, [{ type: "new" }])
  assert.deepEqual(codes(), ["timeout"])
})

test("a message whose toJSON() calls close() is not sent", (t) => {
  const { page, manager } = openManager(t)
  const toJSON = () => manager.close()

  assert.throws(() => manager.sendJSON({ type: "a", field: { toJSON } }), { code: "closed" })
  assert.equal(page.timers.size, 0)
})

for (const [timeout, name] of [
  [NaN, "NaN"],
  [null, "null"],
  [-1, "negative"],
  ["soon", "a text"],
]) {
  test(`a timeout that is ${name} counts as the default`, async (t) => {
    const { page, manager } = openManager(t)
    const ends = ending(manager.request({ type: "a" }, { timeout }))

    await page.pass(9999)
    assert.deepEqual(ends, [])
    await page.pass(1)

    assert.deepEqual(ends.map(({ code }) => code), ["timeout"])
  })
}

test("a call with the timeout 0 does not change the limit of the queue", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  page.socket.accept()
  manager.request({ type: "a" }, { timeout: 0 }).catch(() => {})
  page.socket.bufferedAmount = 2 * MIB

  const text = "x".repeat(900_000)
  manager.sendJSON({ type: "b", text })

  assert.throws(() => manager.sendJSON({ type: "c", text }), { code: "overflow" })
})

test("the limit of the queue is exactly 1 MiB", (t) => {
  const page = openPage(t)
  const { manager } = page.connect()
  const empty = JSON.stringify({ type: "a", text: "" }).length
  const half = MIB / 2
  manager.sendJSON({ type: "a", text: "x".repeat(half - empty) })

  assert.throws(() => manager.sendJSON({ type: "a", text: "x".repeat(half - empty + 1) }), { code: "overflow" })
  manager.sendJSON({ type: "a", text: "x".repeat(half - empty) })
})

test("a full socket is checked every 100 ms, and not more often", (t) => {
  const { page, manager } = openManager(t)
  page.socket.bufferedAmount = 2 * MIB
  let looks = 0
  Object.defineProperty(page.socket, "bufferedAmount", { get: () => (looks++, 2 * MIB) })
  manager.sendJSON({ type: "a" })

  looks = 0
  page.tick(1000)

  assert.ok(looks >= 9 && looks <= 20, String(looks))
})

for (const [what, other] of [
  ["opened in the same millisecond", (page) => (page.random = () => 0.25)],
  ["with the same random number", (page) => page.tick(1)],
]) {
  test(`keys differ between two tabs ${what}`, (t) => {
    const page = openPage(t)
    const prefix = () => {
      const { manager } = page.connect()
      page.socket.accept()
      manager.sendJSON({ type: "a" }, () => {})
      // The rest is a counter, which starts at the same number in each tab.
      return page.socket.sent[0].reply_key.split(".")[0]
    }
    const one = prefix()
    other(page)

    assert.notEqual(prefix(), one)
  })
}

test("toJSON() of a message is used with and without a handler", (t) => {
  const { page, manager } = openManager(t)
  class Note {
    toJSON() {
      return { type: "note", text: "x" }
    }
  }

  manager.sendJSON(new Note())
  manager.sendJSON(new Note(), () => {})

  assert.deepEqual(page.socket.sent.map(({ type, text }) => [type, text]), [["note", "x"], ["note", "x"]])
})

test("a call from inside options.backoff on a lost connection is disconnected too", async (t) => {
  const page = openPage(t)
  let ends
  const { manager } = page.connect("/ws/", null, {
    identity: "u-1",
    backoff() {
      ends ??= ending(manager.request({ type: "a" }, { timeout: Infinity }))
    },
  })
  page.socket.accept()
  page.socket.push({ key: "websocket.ready", identity: "u-1" })
  await page.pass(40_000)

  assert.deepEqual(ends.map(({ code }) => code), ["disconnected"])
})
