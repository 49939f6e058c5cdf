// Measure the package's client and others, print the tables and write them to docs/client.rst: `make figures`.
// With --resume only the second table. The exit status is 1 if the package's client does not keep a promise.

import { execFileSync } from "node:child_process"
import { readFile, writeFile } from "node:fs/promises"

import { graphqlWSWithPings, load, ours, peers } from "./clients.mjs"
import { liveness, measure, PAGES, ROWS, seconds } from "./figures.mjs"
import { measureResume, RESUME_PAGES, RESUME_ROWS } from "./resume.mjs"
import { resuming } from "./resuming.mjs"

const root = new URL("../../", import.meta.url)
const page = new URL("docs/client.rst", root)
const MEASURED = ["benchmarks/client", "channels_websocket_utils/static/websocket_utils"]

// Few pages: the figures are real, but not those of the worst page. The docs stay as they are. The crowd keeps
// its size, because the promise is a share of it.
const isSmall = process.argv.includes("--small")
if (isSmall) {
  Object.assign(PAGES, { few: 2, outage: 3 })
  RESUME_PAGES.count = 2
}

// An unhandled rejection in another client must not end the run.
process.on("unhandledRejection", () => {})

if (!process.argv.includes("--resume")) {
  const pinging = await liveness(await load(graphqlWSWithPings))
  await print("figures", await measured([ours, ...peers], measure), ROWS, "make figures", [
    "``graphql-ws`` with the pings of its documentation notices a half-open link after",
    `${seconds(pinging.halfOpen)} s, and after a wake within ${seconds(pinging.wake)} s.`,
    "",
  ])
}
await print("resume figures", await measured(resuming, measureResume), RESUME_ROWS, "make figures OPTIONS=--resume")

/** Return the clients with their figures. */
async function measured(clients, measure) {
  const found = []
  for (const client of clients) {
    const loaded = await load(client)
    console.error(`${loaded.name} ${loaded.version}`)
    found.push({ ...loaded, figures: await measure(loaded) })
  }
  return found
}

/** Print the table of this name, and write it to the page. */
async function print(name, clients, rows, command, notes = []) {
  const broken = rows.filter(({ holds }) => holds && !holds(clients[0].figures))
  const text = report(clients, rows, broken, command, notes)
  console.log(text)
  if (broken.length) process.exitCode = 1
  if (isSmall) return
  const begin = `.. The ${name} begin; \`\`make figures\`\` writes them.`
  const [before, , after] = (await readFile(page, "utf8")).split(
    new RegExp(`(?<=${begin}\\n)|(?=\\.\\. The ${name} end\\.)`),
  )
  await writeFile(page, `${before}\n${text}\n${after}`)
}

function report(clients, rows, broken, command, notes) {
  const lines = [
    ["\\", "promised", ...clients.map(({ name }) => name)],
    ...rows.map(({ name, bar, show }) => [name, bar ?? "\\-", ...clients.map(({ figures }) => show(figures))]),
  ]
  const versions = clients.map(({ name, version }) => `${name} ${version}`).join(", ")
  return [
    ...table(lines),
    "",
    ...notes,
    ...(broken.length ? ["Not as promised:", "", ...broken.map(({ name }) => `* ${name}`), ""] : []),
    `:Command: \`\`${command}\`\``,
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
