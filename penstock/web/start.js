// Starts Swagger UI on the page that api/docs_page.py makes. In a file of its own: the page allows no inline script.
"use strict";

const root = document.getElementById("swagger-ui");

window.ui = SwaggerUIBundle({
  domNode: root,
  url: root.dataset.openapi,
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null, // else it would ask validator.swagger.io
  layout: "BaseLayout",
  presets: [SwaggerUIBundle.presets.apis],
});
