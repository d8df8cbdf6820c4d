"use strict";
const theme = document.getElementById("theme");
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

const box = document.getElementById("search");
const told = document.getElementById("found");
const talks = Array.from(document.querySelectorAll(".talk"), (talk) => ({
  talk,
  messages: Array.from(talk.querySelectorAll(".message")),
}));
let waiting = 0;

function search() {
  const wanted = box.value.trim().toLowerCase();
  document.getElementById("talks").classList.toggle("searching", wanted !== "");
  let messages = 0;
  let conversations = 0;
  for (const one of talks) {
    let here = 0;
    for (const message of one.messages) {
      const found = wanted !== "" && message.querySelector(".words").textContent.toLowerCase().includes(wanted);
      message.classList.toggle("found", found);
      here += found ? 1 : 0;
    }
    one.talk.classList.toggle("found", here > 0);
    one.talk.open = here > 0 && conversations < 20;
    messages += here;
    conversations += here ? 1 : 0;
  }
  told.textContent = wanted === "" ? "" : `${messages} messages in ${conversations} conversations`;
}

box.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(search, 150);
});
