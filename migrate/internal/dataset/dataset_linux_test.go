package dataset

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestClonesFirst(t *testing.T) {
	order := clonesFirst(map[string]Dataset{
		"base": {Origin: "-"}, "b": {Origin: "base"}, "c": {Origin: "b"}, "a": {Origin: "c"}, "other": {Origin: "pool/elsewhere"},
	})
	require.Len(t, order, 5)
	at := map[string]int{}
	for i, id := range order {
		at[id] = i
	}
	assert.Less(t, at["a"], at["c"])
	assert.Less(t, at["c"], at["b"])
	assert.Less(t, at["b"], at["base"])
}

func TestParse(t *testing.T) {
	const out = "pool/a\t0\t-\npool/a/base\t0\t-\npool/a/top layer\t1024\tpool/a/base@1\npool/a/other\t0\tpool/b/x@1\npool/ab\t0\t-\nodd\n"
	byID, err := parse(out, "pool/a")
	require.NoError(t, err)
	assert.Equal(t, map[string]Dataset{
		"base": {Origin: "-"}, "top layer": {Quota: 1024, Origin: "base"}, "other": {Origin: "pool/b/x"},
	}, byID)
	_, err = parse("pool/a/base\tnone\t-\n", "pool/a")
	require.Error(t, err)
}

func FuzzParse(f *testing.F) {
	f.Add("pool/a/base\t0\t-\n", "pool/a")
	f.Add("pool/a/base\t0\tpool/a/x@1\n", "pool/a")
	f.Fuzz(func(t *testing.T, out, holder string) {
		byID, err := parse(out, holder)
		if err == nil {
			assert.LessOrEqual(t, len(clonesFirst(byID)), len(byID))
		}
	})
}
