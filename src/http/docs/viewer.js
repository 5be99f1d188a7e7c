// Shows the contract. Its server becomes the one that this page came from, with the prefix that a proxy may add.
const place = document.getElementById("viewer");
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", theme);
theme();

const say = (text) => {
  const line = document.createElement("p");
  line.setAttribute("role", "alert");
  line.textContent = text;
  place.replaceChildren(line);
};

(async () => {
  const url = new URL(place.dataset.contract, document.baseURI);
  try {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`it was answered ${answer.status}`);
    const spec = await answer.json();
    spec.servers = [{ url: new URL(".", url).href.replace(/\/$/, "") }];
    SwaggerUIBundle({
      spec,
      domNode: place,
      deepLinking: true,
      validatorUrl: null, // would ask another host
      docExpansion: "list",
      defaultModelsExpandDepth: 0,
      presets: [SwaggerUIBundle.presets.apis],
    });
  } catch (error) {
    say(`The contract cannot be shown: ${error.message}. Reload the page to try again.`);
  }
})();
