// Package rootuse finds out whether programs use a directory of layers: by mounts, locks and running processes.
package rootuse
