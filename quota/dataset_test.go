package quota

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestDatasetProperty(t *testing.T) {
	assert.Equal(t, "quota", Limit{Bytes: 5}.DatasetProperty())
	assert.Equal(t, "quota", Limit{}.DatasetProperty())
	assert.Equal(t, "refquota", Limit{Bytes: 5, Scope: ScopeTotal}.DatasetProperty())
}

func TestDatasetLimit(t *testing.T) {
	for _, test := range []struct {
		quota, refquota uint64
		want            Limit
	}{
		{0, 0, Limit{}},
		{10, 0, Limit{Bytes: 10}},
		{0, 20, Limit{Bytes: 20, Scope: ScopeTotal}},
		{10, 20, Limit{Bytes: 10}},
	} {
		assert.Equal(t, test.want, DatasetLimit(test.quota, test.refquota))
	}
}
