import assert from "node:assert/strict"
import { readFile } from "node:fs/promises"
import { test } from "node:test"

import { openPage, script, WebSocketManager } from "./support.mjs"
import { run } from "./topic_runs.mjs"

const RUNS = 10_000

/** Weaknesses of a client: a text of the script, and its replacement. */
const WEAKNESSES = {
  "a message is delivered again": ["|| offset <= subscription.position?.offset) return", ") return"],
  "a position stays behind the messages": ["if (topic.position) subscription.position = {", "void {"],
  "a message goes to a subscription that has ended": ["|| subscription.state === ENDED ||", "||"],
  "a lost connection leaves topics live": ['suspend(manager, topic, "disconnected")', "topic"],
  "a topic stays live while the server is asked": ["      suspend(manager, topic)\n    }\n  }", "    }\n  }"],
  "a subscription that waits for its replay gets messages": ["if (subscription.state !== LIVE) continue\n", ""],
  "the server is asked for the position of a live subscription": ["position && state !== LIVE &&", "position &&"],
  "the server is asked for no position": ["since: (topic.asked = oldest(topic))", "since: void oldest(topic)"],
  "an older position joins": ["!subscription.position || covers(subscription.position, topic.position)", "true"],
  "an older position is not replayed": ["one?.offset >= other?.offset", "one?.offset > other?.offset"],
  "another epoch counts as the same": ["one?.epoch === other?.epoch && one", "one"],
  "an answer without a replay counts as one": ["if (answer.recovered && covers", "if (covers"],
  "all positions are skipped if one is refused": ["(covers(subscription.position, topic.asked) && covers(topic.asked, subscription.position))", "true"],
  "a gap is not reported": ["if (subscription._lapse) {", "if (false) {"],
  "a gap does not move the position": ["(subscription.position = topic.position)", "topic.position"],
  "a gap is reported to subscriptions that miss nothing": ["else if (!covers(subscription.position, topic.position)) skip", "else skip"],
  "a gap keeps the old epoch": ["epoch: message.epoch || topic.position.epoch", "epoch: topic.position.epoch"],
  "a refusal that passes ends the subscription": ['"unavailable", "rate_limited",', ""],
  "a topic without subscriptions is not ended on the server": ["else if (isAsked) left.push(topic)\n", ""],
}

async function weakened([text, replacement]) {
  const source = await readFile(script, "utf8")
  assert.equal(source.split(text).length, 2, `${text} occurs once`)
  const module = { exports: {} }
  new Function("module", source.replace(text, replacement))(module)
  return module.exports
}

test("each handler call is once and in order, or there is one gap", async (t) => {
  const page = openPage(t)
  let calls = 0
  for (let seed = 1; seed <= RUNS; seed++) calls += await run(page, WebSocketManager, seed)

  t.diagnostic(`${RUNS} runs, ${calls} calls of handlers`)
  assert.ok(calls > RUNS)
})

for (const [name, change] of Object.entries(WEAKNESSES)) {
  test(`the random runs notice if ${name}`, async (t) => {
    const page = openPage(t)
    const Weak = await weakened(change)
    const runs = async () => {
      for (let seed = 1; seed <= RUNS; seed++) await run(page, Weak, seed)
    }

    await assert.rejects(runs(), (error) => {
      t.diagnostic(error.message.split("\n")[0])
      return /^Run \d+: /.test(error.message)
    })
  })
}
