package containersstorage

import (
	"context"
	"maps"

	"github.com/cowshed/cowshed/migrate/internal/dataset"
)

// destroyDatasets destroys the datasets of the layers.
func (s *Source) destroyDatasets(ctx context.Context) error {
	records, err := s.readLayers()
	if err != nil {
		return err
	}
	isLayer := s.layerIDs(records)
	layers, err := dataset.Children(ctx, s.holder)
	if err != nil {
		return err
	}
	maps.DeleteFunc(layers, func(id string, _ dataset.Dataset) bool { return !isLayer[id] })
	return dataset.Destroy(ctx, s.holder, layers)
}

// layerIDs are the valid IDs of layers.
func (s *Source) layerIDs(records []layerRecord) map[string]bool {
	ids := make(map[string]bool, len(records))
	for i := range records {
		if s.checkID(records[i].ID) == nil {
			ids[records[i].ID] = true
		}
	}
	return ids
}
