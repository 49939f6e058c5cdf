"use strict"

/* The page of live sockets: the server sends the list again after each change. */
{
  const byId = (id) => document.getElementById(id)
  const manager = new WebSocketManager()

  manager.on("state", ({ state, reason }) => {
    const texts = { connecting: "Connecting…", open: "Live", waiting: "Reconnecting", closed: "Disconnected" }
    byId("state").dataset.state = state
    byId("state-text").textContent = texts[state]
    if (state === "open") watch()
    // The server then shows the form for signing in, or refuses the page.
    if (["signed_out", "user_changed", "refused"].includes(reason)) location.reload()
  })

  async function watch() {
    try {
      for await (const { html } of manager.stream({ type: "watch_sockets" })) show(html)
    } catch (error) {
      // After a lost connection, the next one calls watch() again.
      if (error.code === "disconnected" || error.code === "closed") return
      if (error.code === "permission_denied") location.reload()
      byId("state").dataset.state = "closed"
      byId("state-text").textContent = "Not live: reload"
    }
  }

  /** Show the list that the server has rendered. A button that had the focus keeps it. */
  function show(html) {
    const { name, value } = document.activeElement
    byId("socket-list").innerHTML = html
    const buttons = [...byId("socket-list").querySelectorAll("button")]
    buttons.find((button) => name && button.name === name && button.value === value)?.focus()
  }
}
