SwaggerUIBundle({
  url: "spec.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
