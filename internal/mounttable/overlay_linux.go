package mounttable

import (
	"slices"
	"strings"
)

// LayersOf lists the directories that an overlay consists of, from the options that the kernel shows.
func LayersOf(options string) (layers []string) {
	for option := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(option, "=")
		value = unescape(value)
		switch key {
		case "lowerdir":
			layers = append(layers, splitLayers(value)...)
		case "lowerdir+", "datadir+", "upperdir", "workdir":
			layers = append(layers, value)
		}
	}
	return slices.DeleteFunc(layers, func(layer string) bool { return layer == "" })
}

// splitLayers splits a list of directories at the colons without a backslash before them.
func splitLayers(list string) (layers []string) {
	var layer strings.Builder
	for i := 0; i < len(list); i++ {
		switch {
		case list[i] == '\\' && i+1 < len(list):
			i++
			layer.WriteByte(list[i])
		case list[i] == ':':
			layers = append(layers, layer.String())
			layer.Reset()
		default:
			layer.WriteByte(list[i])
		}
	}
	return append(layers, layer.String())
}

// unescape undoes the octal escapes of proc(5).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var plain strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1]) && isOctal(s[i+2]) && isOctal(s[i+3]) {
			plain.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		plain.WriteByte(s[i])
	}
	return plain.String()
}

func isOctal(c byte) bool { return '0' <= c && c <= '7' }
