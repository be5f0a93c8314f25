package quota

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDatasetProperties(t *testing.T) {
	for _, test := range []struct {
		limit    Limit
		made     []string
		replaced []string
	}{
		{Limit{}, nil, []string{"quota=none", "refquota=none"}},
		{Limit{Bytes: 5}, []string{"quota=5"}, []string{"quota=5", "refquota=none"}},
		{Limit{Bytes: 1 << 63, Scope: ScopeTotal}, []string{"refquota=9223372036854775808"}, []string{"refquota=9223372036854775808", "quota=none"}},
	} {
		assert.Equal(t, test.made, test.limit.DatasetProperties())
		assert.Equal(t, test.replaced, test.limit.DatasetReplacement())
	}
}

func TestDatasetLimit(t *testing.T) {
	for _, test := range []struct {
		quota, refquota string
		want            Limit
	}{
		{"0", "0", Limit{}},
		{"10", "0", Limit{Bytes: 10}},
		{"0", "20", Limit{Bytes: 20, Scope: ScopeTotal}},
		{"10", "20", Limit{Bytes: 10}},
	} {
		got, err := DatasetLimit(test.quota, test.refquota)
		require.NoError(t, err)
		assert.Equal(t, test.want, got)
	}
	for _, bad := range [][2]string{{"none", "0"}, {"0", "-"}, {"", ""}} {
		_, err := DatasetLimit(bad[0], bad[1])
		require.Error(t, err)
	}
}
