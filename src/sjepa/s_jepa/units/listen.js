// Plays the examples of a component: data is [[component, [[name, seconds, audio], …]], …]
(() => {
  const box = document.getElementById("units");
  const data = new Map(JSON.parse(document.getElementById("unit-audio").textContent));
  const heard = box.querySelector(".heard");
  const player = new Audio();
  const play = (audio) => { player.src = audio; player.play().catch(() => {}); };
  const show = (tile) => {
    box.querySelectorAll(".tile").forEach((other) => other.setAttribute("aria-pressed", other === tile));
    const examples = data.get(Number(tile.dataset.unit)) || [];
    heard.replaceChildren(...examples.map(([name, seconds, audio]) => {
      const row = document.createElement("div"), button = document.createElement("button"), text = document.createElement("span");
      row.className = "example"; button.className = "play"; button.textContent = "▶";
      button.setAttribute("aria-label", "play " + name);
      button.onclick = () => play(audio);
      text.textContent = name + ", " + seconds.toFixed(2) + " s";
      row.append(button, text);
      return row;
    }));
    if (examples.length) play(examples[0][2]);
  };
  box.querySelectorAll(".tile").forEach((tile) => { tile.onclick = () => show(tile); });
})();
