// Package removal removes the directories of an old root. It follows no symbolic link.
package removal
