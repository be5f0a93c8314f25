//go:build linux

package graphtest

import (
	"cmp"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var chainTests = []Test{
	{"DeepChain", deepChain},
}

// defaultChain is the number of layers on top of each other in deepChain. Docker itself stops at 125.
const defaultChain = 125

// deepChain: a layer far up a chain has the files that each layer below it added, and costs no more.
func deepChain(t testing.TB, c Config) {
	chainLength := cmp.Or(c.ChainLength, defaultChain)
	l := c.open(t)
	ids := []string{l.filled("", func(w tree) { w.file("base", "base") })}
	for i := 1; i <= chainLength; i++ {
		ids = append(ids, l.filled(ids[i-1], func(w tree) {
			w = w.at(editTime.Add(time.Duration(i) * time.Second))
			w.file("top", fmt.Sprintf("layer number %d", i))
			w.mkdir(fmt.Sprintf("layer-%d", i))
			w.file(fmt.Sprintf("layer-%d/parent", i), ids[i-1])
			if i > 1 {
				w.remove(fmt.Sprintf("layer-%d/parent", i-1))
			}
		}))
	}
	top := l.scan(ids[chainLength])
	require.Len(t, top, 1+1+1+chainLength+1, "root, base, top, a directory of each layer, one file in the last")
	assert.Equal(t, l.scan(ids[0])["base"], top["base"])

	middle := chainLength / 2
	assert.Equal(t, []string{
		fmt.Sprintf("C /layer-%d", middle-1),
		fmt.Sprintf("D /layer-%d/parent", middle-1),
		fmt.Sprintf("A /layer-%d", middle),
		fmt.Sprintf("A /layer-%d/parent", middle),
		"C /top",
	}, l.changes(ids[middle], ids[middle-1]))
	assertSameList(t, top.added(), l.changes(ids[chainLength], ""), "the changes of the top layer")
	assert.Len(t, l.changes(ids[chainLength], ids[0]), 1+chainLength+1, "top, a directory of each layer, one file")
	l.agree(ids[chainLength], ids[0], loss{})
}
