package layerstore

import (
	"errors"
	"syscall"
)

// Advice says what to do about an error of the filesystem, "" if that depends on the operation.
func Advice(err error) string {
	switch {
	case errors.Is(err, syscall.EROFS):
		return "The filesystem is read-only: layers can be listed, compared, mounted and exported. For a way out, see: cowshed doctor"
	case errors.Is(err, syscall.EDQUOT):
		return "The layer's limit is reached. See: cowshed usage; change it with: cowshed limit"
	case errors.Is(err, syscall.ENOSPC):
		return "A filesystem is full. See: cowshed status; make room with: cowshed rm, cowshed rmi; an embedded store grows with: cowshed init --loop SIZE"
	}
	return ""
}
