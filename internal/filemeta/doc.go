// Package filemeta gives a file the attributes of another: owner, mode, extended attributes and times.
package filemeta
