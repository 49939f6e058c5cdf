// Measure the package's client and others, print the table and write it to docs/client.rst: `make figures`.
// The exit status is 1 if the package's client does not keep a promise.

import { execFileSync } from "node:child_process"
import { readFile, writeFile } from "node:fs/promises"

import { graphqlWSWithPings, load, ours, peers } from "./clients.mjs"
import { liveness, measure, PAGES, ROWS, seconds } from "./figures.mjs"

const root = new URL("../../", import.meta.url)
const page = new URL("docs/client.rst", root)
const MEASURED = ["benchmarks/client", "channels_websocket_utils/static/websocket_utils"]
const [BEGIN, END] = [".. The figures begin; ``make figures`` writes them.", ".. The figures end."]

// Few pages: the figures are real, but not those of the worst page. The docs stay as they are. The crowd keeps
// its size, because the promise is a share of it.
const isSmall = process.argv.includes("--small")
if (isSmall) Object.assign(PAGES, { few: 2, outage: 3 })

// An unhandled rejection in another client must not end the run.
process.on("unhandledRejection", () => {})

const clients = []
for (const client of [ours, ...peers]) {
  const loaded = await load(client)
  console.error(`${loaded.name} ${loaded.version}`)
  clients.push({ ...loaded, figures: await measure(loaded) })
}
const broken = ROWS.filter(({ holds }) => holds && !holds(clients[0].figures))
const text = report(await liveness(await load(graphqlWSWithPings)))

console.log(text)
if (!isSmall) {
  const [before, , after] = (await readFile(page, "utf8")).split(new RegExp(`(?<=${BEGIN}\\n)|(?=${END})`))
  await writeFile(page, `${before}\n${text}\n${after}`)
}
process.exitCode = broken.length ? 1 : 0

function report(pinging) {
  const lines = [
    ["\\", "promised", ...clients.map(({ name }) => name)],
    ...ROWS.map(({ name, bar, show }) => [name, bar ?? "\\-", ...clients.map(({ figures }) => show(figures))]),
  ]
  const versions = clients.map(({ name, version }) => `${name} ${version}`).join(", ")
  return [
    ...table(lines),
    "",
    "``graphql-ws`` with the pings of its documentation notices a half-open link after",
    `${seconds(pinging.halfOpen)} s, and after a wake within ${seconds(pinging.wake)} s.`,
    "",
    ...(broken.length ? ["Not as promised:", "", ...broken.map(({ name }) => `* ${name}`), ""] : []),
    ":Command: ``make figures``",
    `:Date: ${new Date().toISOString().slice(0, 10)}`,
    `:Commit: ${commit()}`,
    `:With: ${versions}, Node ${process.versions.node}`,
    "",
  ].join("\n")
}

function table([head, ...lines]) {
  const widths = head.map((_, column) => Math.max(...[head, ...lines].map((line) => line[column].length)))
  const rule = widths.map((width) => "=".repeat(width)).join("  ")
  const row = (line) => line.map((cell, column) => cell.padEnd(widths[column])).join("  ").trimEnd()
  return [rule, row(head), rule, ...lines.map(row), rule]
}

/** Return the commit, with a note if the code has local changes. */
function commit() {
  // Other commands may use the same repository.
  const git = (...args) => execFileSync("git", ["--no-optional-locks", ...args], { cwd: root, encoding: "utf8" }).trim()
  try {
    const changed = git("status", "--porcelain", "--", ...MEASURED)
    return git("rev-parse", "--short", "HEAD") + (changed && " with local changes")
  } catch {
    return "none"
  }
}
