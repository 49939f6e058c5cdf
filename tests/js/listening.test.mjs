import assert from "node:assert/strict"
import { test } from "node:test"

import { openPage } from "./support.mjs"

function openManager(t) {
  const page = openPage(t)
  const connection = page.connect()
  page.socket.accept()
  return { page, ...connection, push: (key) => page.socket.push({ key }) }
}

test("a push reaches the listeners of its key as the whole frame, in order", (t) => {
  const { page, manager } = openManager(t)
  const heard = []
  manager.addMessageListener("news", (frame) => heard.push(["first", frame]))
  manager.addMessageListener("news", (frame) => heard.push(["second", frame]))
  manager.addMessageListener("other", (frame) => heard.push(["other", frame]))

  page.socket.push({ key: "news", data: 1, error: "mine" })

  const frame = { key: "news", data: 1, error: "mine" }
  assert.deepEqual(heard, [["first", frame], ["second", frame]])
})

test("listeners survive reconnects", (t) => {
  const { page, manager, push } = openManager(t)
  let heard = 0
  manager.addMessageListener("news", () => heard++)

  page.socket.drop()
  page.tick(1700)
  page.socket.accept()
  push("news")

  assert.equal(heard, 1)
})

test("addMessageListener() returns its own undo", (t) => {
  const { manager, push } = openManager(t)
  let heard = 0
  const listen = () => heard++
  manager.addMessageListener("news", () => {})
  const undo = manager.addMessageListener("news", listen)
  undo()
  push("news")
  assert.equal(heard, 0)

  manager.addMessageListener("news", listen)
  undo()
  push("news")
  assert.equal(heard, 1, "an old undo does not undo a later addition")
})

test("the same pair twice counts once", (t) => {
  const { manager, push } = openManager(t)
  let heard = 0
  const listen = () => heard++
  for (const which of [0, 1]) {
    heard = 0
    const undos = [manager.addMessageListener("news", listen), manager.addMessageListener("news", listen)]
    push("news")
    assert.equal(heard, 1)

    undos[which]()
    push("news")
    assert.equal(heard, 1, "either undo ends it")
  }
})

test("removeMessageListener() removes a pair, and an unknown pair is nothing", (t) => {
  const { manager, push } = openManager(t)
  let heard = 0
  const listen = () => heard++
  manager.addMessageListener("news", listen)
  manager.removeMessageListener("other", listen)
  manager.removeMessageListener("news", () => {})
  push("news")
  manager.removeMessageListener("news", listen)
  push("news")

  assert.equal(heard, 1)
})

test("{once} hears one frame, even when its handler causes another", (t) => {
  const { manager, push } = openManager(t)
  let heard = 0
  manager.addMessageListener(
    "news",
    () => {
      heard++
      push("news")
    },
    { once: true },
  )

  push("news")
  push("news")

  assert.equal(heard, 1)
})

test("{signal} ends the listening, and an aborted one never begins it", (t) => {
  const { manager, push } = openManager(t)
  const controller = new AbortController()
  let heard = 0
  manager.addMessageListener("news", () => heard++, { signal: controller.signal })
  manager.addMessageListener("news", () => heard++, { signal: AbortSignal.abort() })

  push("news")
  controller.abort()
  push("news")

  assert.equal(heard, 1)
})

test("a throwing listener harms neither the others nor the socket", (t) => {
  const { manager, push, errors } = openManager(t)
  const cause = new Error("mine")
  let heard = 0
  manager.addMessageListener("news", () => {
    throw cause
  })
  manager.addMessageListener("news", () => heard++)

  push("news")

  assert.equal(heard, 1)
  assert.equal(manager.state, "open")
  assert.deepEqual(errors.map((error) => [error.code, error.cause]), [["handler_failed", cause]])
})

test("throwing error and state handlers harm nothing and end in no loop", (t) => {
  const { page, manager, push } = openManager(t)
  let told = 0
  manager.on("error", () => {
    told++
    throw new Error("mine")
  })
  manager.on("state", () => {
    throw new Error("mine")
  })
  manager.addMessageListener("error", () => {
    throw new Error("mine")
  })

  push("error")
  page.socket.drop()

  assert.equal(told, 2)
  assert.equal(manager.state, "waiting")
})

test("what is removed during a dispatch is not called, what is added waits for the next", (t) => {
  const { manager, push } = openManager(t)
  const heard = []
  const removed = () => heard.push("removed")
  manager.addMessageListener("news", () => {
    heard.push("first")
    manager.removeMessageListener("news", removed)
    manager.addMessageListener("news", () => heard.push("added"))
  })
  manager.addMessageListener("news", removed)
  manager.addMessageListener("news", () => heard.push("last"))

  push("news")

  assert.deepEqual(heard, ["first", "last"])
})

test("__proto__ and constructor are only keys", (t) => {
  const { page, manager } = openManager(t)
  const heard = []
  for (const key of ["__proto__", "constructor"]) manager.addMessageListener(key, (frame) => heard.push(frame.key))

  page.socket.onmessage({ data: '{"key": "__proto__", "__proto__": {"polluted": true}}' })
  page.socket.onmessage({ data: '{"key": "constructor"}' })

  assert.deepEqual(heard, ["__proto__", "constructor"])
  assert.equal({}.polluted, undefined)
})

test("on() returns its own undo", (t) => {
  const { page, manager } = openManager(t)
  let heard = 0
  const undo = manager.on("state", () => heard++)

  page.socket.drop()
  undo()
  page.tick(1700)

  assert.equal(heard, 1)
})

test("a key that is no string and a handler that is no function throw a TypeError", (t) => {
  const { manager } = openManager(t)

  assert.throws(() => manager.addMessageListener(7, () => {}), { name: "TypeError", message: /key/ })
  assert.throws(() => manager.addMessageListener("news"), { name: "TypeError", message: /handler/ })
  assert.throws(() => manager.on("state", null), { name: "TypeError", message: /handler/ })
})

test("a listener that removes all listeners of its key harms nothing", (t) => {
  const page = openPage(t)
  const { manager, errors } = page.connect()
  const heard = []
  const undo = [
    manager.addMessageListener("news", () => undo.forEach((each) => each())),
    manager.addMessageListener("news", () => heard.push("second")),
  ]
  page.socket.accept()

  page.socket.push({ key: "news" })
  page.socket.push({ key: "news" })

  assert.deepEqual(heard, [])
  assert.deepEqual(errors, [])
})

test("a listener that was undone has left its signal", (t) => {
  const { signal } = new AbortController()
  const listening = new Set()
  signal.addEventListener = (_, listener) => listening.add(listener)
  signal.removeEventListener = (_, listener) => listening.delete(listener)
  const page = openPage(t)
  const { manager } = page.connect()

  const undo = manager.addMessageListener("news", () => {}, { signal })
  assert.equal(listening.size, 1)
  undo()

  assert.equal(listening.size, 0)
})
