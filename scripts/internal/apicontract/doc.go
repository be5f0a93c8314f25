// Package apicontract tests the HTTP API against its description: each request and answer is as api/openapi.yaml says. It is a
// module of its own, so that Cowshed does not need a validator of OpenAPI.
package apicontract
