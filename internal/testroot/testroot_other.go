//go:build !linux

// Package testroot makes graph roots as Docker does, for tests.
package testroot
