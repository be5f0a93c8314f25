//go:build !linux

// Package homelock works on Linux only.
package homelock
