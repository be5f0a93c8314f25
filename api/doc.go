// Package api has the requests and answers of Cowshed's HTTP API, which "cowshed serve" answers on a unix socket.
//
// [OpenAPI] describes the API: its paths, parameters, bodies and errors. The types of this package are the JSON bodies. The
// command prints the same types with --json.
//
// The version of the API is the first part of each path, [Prefix]. Within a version, paths, fields and kinds of errors are added,
// and none is removed or gets another meaning. So a client ignores fields that it does not know, and takes an unknown kind of
// error for [KindUnknown]. The server refuses fields of a request that it does not know, so a client learns that an old server
// lacks a function. An incompatible change gets a new prefix, which the server answers beside the old one.
package api

import _ "embed"

// Prefix begins the path of each request of this version.
const Prefix = "/v1"

// OpenAPI is the description of the API, in OpenAPI 3.1.
//
//go:embed openapi.yaml
var OpenAPI []byte

// Media types of answers that are not JSON.
const (
	MediaTypeTar      = "application/x-tar"                    // a layer tar, or an image
	MediaTypeStream   = "application/vnd.cowshed.layer-stream" // layers as "cowshed send" writes them
	MediaTypeProgress = "application/x-ndjson"                 // one Progress a line
)
