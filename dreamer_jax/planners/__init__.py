"""Planning by search: action sequences from a score, nothing learnt."""
