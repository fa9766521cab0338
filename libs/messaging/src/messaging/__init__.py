"""The game's event bus: GameEvents over SNS and SQS, written and read as its services do."""
