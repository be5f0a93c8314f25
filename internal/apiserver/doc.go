// Package apiserver answers Cowshed's HTTP API, which package api describes, on a unix socket.
//
// Clients are not trusted. The kernel names the user of a client. The cost of requests is bounded: connections, requests under way,
// bytes of headers and bodies, and the time for which a client may keep the server waiting. See conn.go and gate.go.
package apiserver
