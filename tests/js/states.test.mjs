import assert from "node:assert/strict"
import { readFile } from "node:fs/promises"
import { test } from "node:test"

import { openPage, root, script, tokens } from "./support.mjs"

const STATES = ["connecting.token", "connecting.socket", "connecting.proof", "open", "waiting", "closed"]

/** The transitions of FOLLOWERS in the script, as "from -> to". */
async function allowed() {
  const source = await readFile(script, "utf8")
  const [names] = /^  const ASKING[\s\S]*?(?=^$)/m.exec(source)
  const [table] = /^  const ENDS[\s\S]*?^  const FOLLOWERS[\s\S]*?^  \}$/m.exec(source)
  const followers = new Function(`${names}\n${table}\nreturn FOLLOWERS`)()
  return Object.entries(followers).flatMap(([from, all]) => all.map((to) => `${from} -> ${to}`))
}

/** The transitions of the table in the documentation, as "from -> to". */
async function documented() {
  const page = await readFile(new URL("docs/client_internals.rst", root), "utf8")
  const [, rows] = /^state +meaning.*\n=+[ =]+\n([\s\S]*?)^=/m.exec(page)
  const transitions = []
  let from
  for (const line of rows.trimEnd().split("\n")) {
    from = /^``([\w.]+)``/.exec(line)?.[1] ?? from
    const last = line.split(/ {2,}/).at(-1)
    if (/^(``[\w.]+``,? ?)+$/.test(last)) {
      transitions.push(...[...last.matchAll(/``([\w.]+)``/g)].map(([, to]) => `${from} -> ${to}`))
    }
  }
  return transitions
}

/** A list that receives the next transitions of `manager`, also those to the same state. */
function record({ _manager: inside }) {
  const made = []
  let { state } = inside
  Object.defineProperty(inside, "state", {
    get: () => state,
    set(next) {
      made.push(`${state} -> ${next}`)
      state = next
    },
  })
  return made
}

test("the documentation has the transitions of the script", async () => {
  const [code, page] = [await allowed(), await documented()]

  assert.deepEqual([...new Set(code.flatMap((pair) => pair.split(" -> ")))].sort(), [...STATES].sort())
  assert.deepEqual(page.sort(), code.sort())
})

test("every allowed transition happens", async (t) => {
  const page = openPage(t)
  const { manager } = page.connect("/ws/", tokens())
  const made = record(manager)
  const socket = async () => {
    manager.reconnect()
    await page.pass(0)
  }
  const proof = async () => {
    await socket()
    manager.sendJSON({ type: "queued" })
    page.socket.accept()
  }
  const open = async () => {
    await socket()
    page.socket.accept()
  }
  const waiting = async () => {
    await open()
    page.socket.drop()
  }
  const leaves = [() => manager.reconnect(), () => page.window.dispatch("pagehide"), () => manager.close()]

  for (const leave of leaves) {
    manager.reconnect()
    leave()
    for (const reach of [socket, open, waiting, proof]) {
      await reach()
      leave()
    }
  }
  await proof()
  page.tick(100)
  const { manager: other } = page.connect("/ws/", "wst_a")
  other.close()
  const later = record(other)
  other.reconnect()

  assert.deepEqual([...new Set([...made, ...later])].sort(), (await allowed()).sort())
})

test("a forbidden transition throws, and changes nothing", (t) => {
  const page = openPage(t)
  const { manager } = page.connect("/ws/", "wst_a")
  manager._manager.state = "waiting"

  assert.throws(() => page.socket.accept(), /waiting -> connecting\.proof/)
  assert.equal(manager.state, "waiting")
})
