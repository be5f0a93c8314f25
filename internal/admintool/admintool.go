// Package admintool finds the programs of administrators, which are often not in the PATH of users and services.
package admintool

import (
	"os/exec"
	"path/filepath"
)

// Look returns the path of a program: in the PATH, or in a directory for administrators. Returns exec.ErrNotFound if no
// such directory has the program.
func Look(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, nil
		}
	}
	return "", err
}
